"""Requests that can never be served: each gets an error, and no other request notices."""

from __future__ import annotations

from dataclasses import replace

import pytest

import megatron_patch
from tools.differential import judging, oracles, serving
from tools.differential.configuration import LONGEST, ODD_STOPS, Configuration, Plan
from tools.differential.selections import Selections
from tools.differential.serving import Room

LIMITS = {"tokens of a step": 64, "blocks of a prompt": 12, "blocks to grow": 9}
ROOM = Room(LIMITS, longest=96, block_size=8)
GREEDY = (1.0, 1, 0.0)

GOOD = (Plan(stem=1, length=9, num_tokens=8), Plan(stem=2, length=5, num_tokens=6, arrival=2))


@pytest.mark.parametrize(
    ("length", "num_tokens", "why"),
    [
        (64, 9, None),
        (0, 4, "no prompt"),
        (5, -1, "too many"),
        (97, 1, "too many"),
        (65, 1, "too long for a step"),
    ],
)
def test_who_is_refused(length, num_tokens, why):
    found = ROOM.refusal(length, num_tokens, GREEDY)
    assert (found is None) if why is None else (why in (found or ""))


@pytest.mark.skipif(not serving.MEASURES_GROWTH, reason="one request can always go on")
@pytest.mark.parametrize(
    ("length", "num_tokens", "drafts", "refused"),
    [
        (96, 0, 0, False),  # of the blocks of a prompt
        (64, 9, 0, False),  # the last token is not stored
        (64, 10, 0, True),
        (64, 8, 1, False),
        (64, 9, 1, True),
        (73, 1, 2, False),  # what is generated is not stored, nor is anything drafted after it
    ],
)
def test_blocks_of_a_prompt_are_others_than_those_to_grow(length, num_tokens, drafts, refused):
    room = replace(ROOM, chunked=True, drafts=drafts)
    assert bool(room.refusal(length, num_tokens, GREEDY)) is refused


def test_more_tokens_than_there_is_room_for_are_cut_or_refused():
    found = replace(ROOM, chunked=True).refusal(60, 50, GREEDY)
    assert (found is None) is serving.CLAMPS or "blocks" in str(found)
    assert ROOM.tokens(60, 50) == (36 if serving.CLAMPS else 50)


@pytest.mark.skipif(not serving.OWN_PARAMETERS, reason="all requests are sampled alike")
@pytest.mark.parametrize("sampling", [(float("nan"), 0, 0.0), (1.0, -2, 0.0), (1.0, 0, 1.5)])
def test_what_means_nothing_is_refused(sampling):
    assert "no sampling" in str(ROOM.refusal(5, 4, sampling))


def refused(configuration: Configuration) -> list[bool]:
    """Run it with the correctness patches; returns whether each request was refused."""
    run_with = judging.runner(Selections())
    observation = run_with(configuration, "correctness")
    others = replace(configuration, requests=configuration.requests[-2:], spare_blocks=None)
    alone = run_with(others, "correctness")
    megatron_patch.uninstall()
    assert observation.record["error"] is None
    assert oracles.complaints(configuration, observation) == []
    for index in (-1, -2):
        (one,), (other,) = (
            item.record["requests"][index]["parts"] for item in (observation, alone)
        )
        assert one["generated_tokens"] == other["generated_tokens"]
    case = oracles.Case(configuration, observation)
    return [oracles.refusal(case, plan) is not None for plan in configuration.requests]


def test_no_refused_request_ends_the_engine_or_changes_another(device):
    plans = [Plan(length=60, num_tokens=6), Plan(length=70, num_tokens=4)]  # blocks, and a step
    if serving.OWN_PARAMETERS:  # 0.14 loses blocks for them, and 0.15 takes a negative number
        plans += [Plan(length=80, num_tokens=3), Plan(length=5, num_tokens=-1)]
    configuration = Configuration(
        requests=(*plans, *GOOD), spare_blocks=-4, longest=82, block_size=8
    )
    assert refused(configuration) == [True] * len(plans) + [False] * 2


@pytest.mark.skipif(not serving.OWN_PARAMETERS, reason="it has no stop words")
def test_stop_words_of_odd_shapes_change_nothing(device):
    plans = tuple(
        Plan(stem=3, length=9, num_tokens=8, stop=(3, 2), odd_stop=odd) for odd in ODD_STOPS
    )
    configuration = Configuration(requests=(*plans, Plan(length=LONGEST - 8, num_tokens=8), *GOOD))
    assert refused(configuration) == [False] * (len(plans) + 3)
