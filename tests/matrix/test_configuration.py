"""Configurations are drawn for the release, and fit into a command line."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_patch import testing
from tools import matrix
from tools.differential import building
from tools.differential.configuration import Configuration, Plan, decode, dimensions, encode
from tools.differential.drawing import Abilities, configurations
from tools.differential.searching import sample


@settings(suppress_health_check=list(HealthCheck), max_examples=40)
@given(st.data())
def test_what_is_drawn_is_read_again_and_can_be_built(device, data):
    configuration = data.draw(configurations(Abilities.installed()))
    assert decode(encode(configuration)) == configuration
    assert len(dimensions(configuration)) > 20
    testing.build_context(building.spec(configuration))


def test_what_attention_can_have_is_drawn_and_most_have_the_plainest(device):
    able = Abilities.installed()
    drawn = [found for seed in range(5) for found in sample(able, 100, seed)]
    positions = {"learned_absolute", "rope", *["yarn"] * able.yarn}
    assert {found.positions for found in drawn} == positions
    assert len({found.window for found in drawn}) > 4
    assert any(found.scale for found in drawn)
    sinks = {None, "off-by-one", "learnable"} if able.sinks else {None}
    assert {found.sinks for found in drawn} == sinks
    assert any(found.window_skip for found in drawn) is able.layer_windows
    assert {found.block_size for found in drawn if found.latents} == {64}
    assert any(found.hybrid is not None for found in drawn) is able.hybrid
    attention = ("window", "sinks", "scale", "positions", "latents")
    plain = Configuration()
    others = sum(
        any(getattr(found, name) != getattr(plain, name) for name in attention) for found in drawn
    )
    assert len(drawn) / 10 < others < len(drawn) / 3
    hybrids = sum(found.hybrid is not None for found in drawn)
    assert hybrids < len(drawn) / 4


@settings(suppress_health_check=list(HealthCheck), max_examples=20)
@given(st.data())
def test_nothing_is_asked_of_sampling_that_the_source_lacks(data):
    able = replace(Abilities.installed(), per_request=True, skips=False, top_n=False, stops=False)
    for plan in data.draw(configurations(able)).requests:
        assert plan.log_probs in (None, "all")
        assert (plan.top_n, plan.stop, plan.end) == (0, None, None)


def test_on_a_gpu_graphs_are_captured_and_of_nothing_that_megatron_refuses(device):
    able = replace(Abilities.installed(), captures=True)
    drawn = [found for seed in range(3) for found in sample(able, 100, seed)]
    assert {found.scope for found in drawn if found.graphs is None} == {None}
    captured = [found for found in drawn if found.graphs is not None]
    assert {found.scope for found in captured} == {"layer", *["block"] * able.blocks}
    assert not any(found.experts or found.recompute for found in captured)
    assert "own context" not in {found.company for found in captured}
    assert any(found.recompute for found in drawn)
    assert any(found.experts for found in drawn) is able.experts


@pytest.mark.parametrize("text", ["", "[]", '{"request":[]}', '{"requests":[{"steam":1}]}'])
def test_what_is_no_configuration_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        decode(text)


def test_defaults_are_left_out():
    assert encode(Configuration()) == "{}"
    assert encode(Configuration(requests=(Plan(stem=1),))) == '{"requests":[{"stem":1}]}'


def test_a_command_line_that_is_wrong_ends_with_2(capsys):
    for arguments in (["--examples", "many"], ["--unknown"]):
        with pytest.raises(SystemExit) as ended:
            matrix.main(arguments)
        assert ended.value.code == 2
