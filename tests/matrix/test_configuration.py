"""Configurations are drawn for the release, and fit into a command line."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_patch import testing
from tools import matrix
from tools.differential import building, judging, searching
from tools.differential.configuration import Configuration, Plan, decode, dimensions, encode
from tools.differential.drawing import Abilities, configurations

from .conftest import Planted
from .test_judging import another_token


@settings(suppress_health_check=list(HealthCheck), max_examples=40)
@given(st.data())
def test_what_is_drawn_is_read_again_and_can_be_built(device, data):
    configuration = data.draw(configurations(Abilities.installed()))
    assert decode(encode(configuration)) == configuration
    assert len(dimensions(configuration)) > 20
    testing.build_context(building.spec(configuration))


@settings(suppress_health_check=list(HealthCheck), max_examples=20)
@given(st.data())
def test_nothing_is_asked_of_sampling_that_the_source_lacks(data):
    able = replace(Abilities.installed(), per_request=True, skips=False, top_n=False, stops=False)
    for plan in data.draw(configurations(able)).requests:
        assert plan.log_probs in (None, "all")
        assert (plan.top_n, plan.stop, plan.end) == (0, None, None)


@pytest.mark.parametrize("text", ["", "[]", '{"request":[]}', '{"requests":[{"steam":1}]}'])
def test_what_is_no_configuration_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        decode(text)


def test_defaults_are_left_out():
    assert encode(Configuration()) == "{}"
    assert encode(Configuration(requests=(Plan(stem=1),))) == '{"requests":[{"stem":1}]}'


def search_for(run_with):  # type: ignore[no-untyped-def]
    """A search for what performance patches change."""
    wanted = lambda finding: finding.kind == "performance"  # noqa: E731
    return searching.Search(Abilities.installed(), run_with, [], wanted=wanted)


def test_a_search_shrinks_what_it_finds_and_tells_how_to_repeat_it(engine_class):
    change = another_token(engine_class)
    run_with = Planted(performance=[change]).runner()
    search = search_for(run_with)
    search.run(0, examples=10, most=1)
    (found,) = search.found
    assert found.finding.kind == "performance"
    assert found.examples <= 10
    command = found.command.split("--repeat ")[1].strip("'")
    assert decode(command) == found.configuration


def test_a_search_shrinks_what_shows_something(mocker):
    """With a judge that takes no time, so that shrinking has enough of it."""
    shown = []
    finding = judging.Finding("performance", ("none", "performance"))

    def judge(configuration, run_with):
        enough = any(plan.num_tokens > 2 for plan in configuration.requests)
        if enough:
            shown.append(encode(configuration))
        return judging.Judgement([finding] if enough else [])

    mocker.patch.object(judging, "judge", judge)
    mocker.patch.object(judging, "attribute", return_value=[])
    search = search_for(None)
    search.run(0, examples=50, most=1)
    (found,) = search.found
    text = encode(found.configuration)
    assert len(text) == min(map(len, shown))
    assert len(text) < len(shown[0]) / 2


def test_a_search_leaves_alone_what_it_has_found(engine_class):
    run_with = Planted(performance=[another_token(engine_class)]).runner()
    search = search_for(run_with)
    search.run(0, examples=6, most=2)
    signatures = [found.finding.signature for found in search.found]
    assert len(signatures) == len(set(signatures))


def test_a_command_line_that_is_wrong_ends_with_2(capsys):
    for arguments in (["--examples", "many"], ["--unknown"]):
        with pytest.raises(SystemExit) as ended:
            matrix.main(arguments)
        assert ended.value.code == 2
