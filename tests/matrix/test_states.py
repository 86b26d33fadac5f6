"""What stands for a Mamba layer tells which states are wrong."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

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
#: The third prompt comes in two chunks, as the second one takes some of the step, and all of the
#: second chunk's blocks are cached, too.
CACHED = Configuration(
    requests=(
        Plan(length=64, num_tokens=24),
        Plan(stem=5, length=31, arrival=6),
        Plan(length=84, arrival=6),
    ),
    prefix="LRU",
    chunked=True,
    longest=96,
    hybrid=0,
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


def test_drafts_that_are_not_accepted_are_not_in_the_state():
    if not Abilities.installed().speculative:
        pytest.skip("the release drafts nothing")
    drafting = replace(PLAIN, speculative=2, only_last=False)
    run_with = judging.runner(Selections())
    observation = run_with(drafting, "correctness")
    megatron_patch.uninstall()
    assert oracles.complaints(drafting, observation) == []
    # Some were not: a pass begins before the end of the one before.
    rows = [row for forward in observation.forwards for row in forward.rows if row[0] == 0]
    assert any(after[2] < of[2] + of[3] for of, after in pairwise(rows))


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
    name = MAMBA_SKIPPED_TOKENS.id
    needed = name in selections.applied("correctness")
    without = oracles.complaints(CACHED, run_with(CACHED, f"correctness,-{name}"))
    assert {item.kind for item in without} == ({"state"} if needed else set())
    assert oracles.complaints(CACHED, run_with(CACHED, "correctness")) == []
    megatron_patch.uninstall()
