"""What stands for a Mamba layer tells which states are wrong."""

from __future__ import annotations

import pytest

import megatron_patch
from megatron_patch.backports.ours.mamba_skipped_tokens import MAMBA_SKIPPED_TOKENS
from tools.differential import judging, oracles, states
from tools.differential.configuration import Configuration, Plan
from tools.differential.drawing import Abilities
from tools.differential.selections import Selections

from .conftest import Planted

PLAIN = Configuration(
    requests=(Plan(stem=1, length=9, num_tokens=6), Plan(stem=2, arrival=2)), hybrid=0
)
#: The state after the first prompt is cached, and the second one has a token more.
CACHED = Configuration(
    requests=(Plan(length=16, num_tokens=14), Plan(length=17, arrival=4)),
    prefix="LRU",
    block_size=4,
    hybrid=4,
)


@pytest.fixture(autouse=True)
def _able(device: object) -> None:
    if not Abilities.installed().hybrid:
        pytest.skip("the release has no hybrid models")


def test_a_state_says_which_tokens_it_has_seen_and_in_which_order():
    whole = states.after(0, [3, 0, 63, 7])
    assert whole == states.after(states.after(0, [3, 0]), [63, 7])
    others = ([3, 63, 0, 7], [3, 0, 63], [3, 0, 63, 7, 0], [0, 63, 7], [])
    assert whole not in [states.after(0, other) for other in others]


def test_a_release_is_right_where_nothing_is_cached():
    observation = Planted().runner()(PLAIN, "none")
    assert oracles.complaints(PLAIN, observation) == []
    assert len(observation.forwards) > 5


@pytest.mark.parametrize("name", ["mamba_ssm_states", "mamba_conv_states"])
def test_a_state_that_was_touched_is_found(engine_class, name):
    original = engine_class.post_process_requests

    def post_process_requests(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        getattr(self.context, name).add_(1)
        return original(self, *args, **kwargs)

    change = (engine_class, "post_process_requests", post_process_requests)
    (finding,) = judging.judge(PLAIN, Planted(correctness=[change]).runner()).findings
    assert finding.kind == "harm"
    assert {(item.kind, item.request) for item in finding.complaints} >= {("state", 0)}


def test_a_token_that_no_state_has_seen_is_found_and_the_patch_mends_it():
    if not Abilities.installed().prefixes:
        pytest.skip("the release has no prefix caching")
    selections = Selections()
    run_with = judging.runner(selections)
    released = oracles.complaints(CACHED, run_with(CACHED, "none"))
    needed = MAMBA_SKIPPED_TOKENS.id in selections.applied("correctness")
    assert ("state" in {item.kind for item in released}) is needed
    assert oracles.complaints(CACHED, run_with(CACHED, "correctness")) == []
    megatron_patch.uninstall()
