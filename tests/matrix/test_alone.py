"""What the model alone makes of weights that change, and of attention that is not the plainest."""

from __future__ import annotations

from dataclasses import replace

import pytest

import megatron_patch
from megatron_patch import testing
from tools.differential import alone, building, judging, oracles
from tools.differential.configuration import Configuration, Happening, Plan
from tools.differential.drawing import Abilities
from tools.differential.selections import Selections

from .conftest import Planted

UPDATED = Configuration(
    requests=(Plan(stem=1, length=9, num_tokens=8), Plan(stem=2, num_tokens=8, arrival=2)),
    happenings=(Happening(3, "update"), Happening(5, "train")),
)

ATTENTION = {
    "window": {"window": (3, 0)},
    "window of some layers": {"window": (1, 0), "window_skip": (0, 1)},
    "no window of every other layer": {"window": (3, 0), "window_skip": 2},
    "sinks": {"sinks": "learnable"},
    "sink of 0": {"sinks": "off-by-one"},
    "scale": {"scale": 0.05},
    "YaRN": {"positions": "yarn"},
}
PLAIN = {
    "window": {"window": None},
    "window of some layers": {"window_skip": None},
    "no window of every other layer": {"window_skip": None},
    "sinks": {"sinks": None},
    "sink of 0": {"sinks": None},
    "scale": {"scale": None},
    "YaRN": {"positions": "rope"},
}


def test_a_token_has_the_weights_of_the_last_pass_that_had_it():
    assert alone.versions([(0, 9, 0), (9, 1, 0), (10, 1, 1)]) == ((0, 0), (10, 1))
    # Drafts that were not accepted, and a prefix that was cached.
    assert alone.versions([(8, 4, 0), (12, 3, 0), (13, 3, 1)]) == ((0, 0), (13, 1))
    assert alone.versions([]) == ()


def test_each_token_is_told_where_weights_change(device):
    observation = Planted().runner()(UPDATED, "none")
    assert oracles.complaints(UPDATED, observation) == []
    assert {forward.version for forward in observation.forwards} == {0, 1, 2}
    observation.forwards[4].version = 0
    found = [item.facts["place"] for item in oracles.complaints(UPDATED, observation)]
    assert found
    # The first request has its fifth token of that pass, and had four of passes before it.
    assert min(found) >= 2


def configuration(name: str, *, happenings: tuple[Happening, ...] = ()) -> Configuration:
    able = Abilities.installed()
    fields = ATTENTION[name]
    lacking = [
        ("window_skip" in fields and not able.layer_windows, "windows of some layers"),
        ("sinks" in fields and not able.sinks, "sinks"),
        ("positions" in fields and not able.yarn, "YaRN"),
    ]
    for lacks, what in lacking:
        if lacks:
            pytest.skip(f"the release has no {what}")
    return replace(UPDATED, happenings=happenings, **fields)


@pytest.mark.parametrize(
    ("name", "happenings"),
    [
        *((name, ()) for name in ATTENTION),
        # Without sinks that are learned there would be a parameter less to update.
        *((name, UPDATED.happenings) for name in ATTENTION if name != "sinks"),
    ],
)
def test_an_engine_that_attends_otherwise_is_found(device, monkeypatch, name, happenings):
    right = configuration(name, happenings=happenings)
    run_with = judging.runner(Selections())
    assert oracles.complaints(right, run_with(right, "correctness")) == []
    spec = building.spec
    monkeypatch.setattr(building, "spec", lambda wrong: spec(replace(wrong, **PLAIN[name])))
    found = oracles.complaints(right, run_with(right, "correctness"))
    assert {item.kind for item in found} <= {"token", "logits"}
    assert found
    megatron_patch.uninstall()


LATENTS = Configuration(
    requests=(Plan(stem=1, length=60, num_tokens=8), Plan(stem=2, num_tokens=8, arrival=2)),
    happenings=(Happening(3, "update"),),
    block_size=64,
    max_tokens=128,
    longest=128,
    latents=True,
)


@pytest.mark.parametrize("happenings", [(), LATENTS.happenings], ids=["alike", "updated"])
def test_latents_that_are_rotated_otherwise_are_found(device, monkeypatch, happenings):
    right = replace(LATENTS, happenings=happenings)
    run_with = judging.runner(Selections())
    assert oracles.complaints(right, run_with(right, "correctness")) == []
    spec = building.spec
    faster = {"rotary_base": 100.0}
    monkeypatch.setattr(building, "spec", lambda wrong: replace(spec(wrong), model_options=faster))
    found = oracles.complaints(right, run_with(right, "correctness"))
    assert {item.kind for item in found} <= {"token", "logits"}
    assert found
    megatron_patch.uninstall()


def test_latents_of_an_update_are_those_that_the_engine_uses(device):
    """A pass has latents of other weights, and makes keys and values of them with its own."""
    observation = judging.runner(Selections())(LATENTS, "correctness")
    megatron_patch.uninstall()
    observation.forwards[4].version = 0
    assert {item.request for item in oracles.complaints(LATENTS, observation)} == {0, 1}


@pytest.mark.parametrize("size", [8, 64])
def test_an_engine_serves_no_latents_that_it_does_not_cache(device, size):
    """So that is not drawn."""
    spec = replace(
        building.spec(LATENTS), kv_lora_rank=12, cache_mla_latents=False, block_size_tokens=size
    )
    with pytest.raises(AssertionError, match=r"block size of 64|mla latents must be true"):
        testing.decode(testing.build_engine(spec), [testing.Request((1, 2), 2)])
