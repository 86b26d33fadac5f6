"""What correctness patches change on purpose, and what only looks like it."""

from __future__ import annotations

import json

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tools.differential import intended, oracles
from tools.differential.comparing import Difference
from tools.differential.configuration import Configuration, Plan, decode
from tools.differential.observing import Forward, Observation, Shortage

from ..conftest import RELEASE
from .conftest import Planted

CASE = oracles.Case(
    Configuration(requests=(Plan(log_probs="generated"), Plan()), speculative=1), Observation()
)


@pytest.mark.parametrize(
    ("path", "left", "right", "covered"),
    [
        ("requests[1].merged.generated_log_probs", [-1.0, -2.0], [-1.0], True),
        ("requests[1].parts[0].generated_log_probs", [-1.0, -2.0], [-1.0], True),
        ("requests[0].merged.generated_log_probs", [-1.0, -2.0], [-1.0], False),  # it wants them
        ("requests[1].merged.generated_tokens", [1, 2], [1], False),
        ("requests[1].merged.generated_log_probs", [-1.0, -2.0], [-2.0], False),
        ("requests[1].merged.generated_log_probs", [-2.0], [-1.0, -2.0], False),
        ("requests[1].merged.generated_log_probs", [], [-1.0], True),
        ("requests[1].merged.prompt_log_probs", [-1.0], [-1.0, -2.0], True),
        ("requests[1].merged.prompt_log_probs", [-1.0, -2.0], [-1.0], False),
        ("requests[0].merged.prompt_log_probs", [-1.0], [-1.0, -2.0], False),  # it wants them
        ("requests[1].merged.generated_log_probs", [-1.0, -2.0, -3.0], [-1.0], False),
        ("requests[1].merged.generated_log_probs[0]", -1.0, -2.0, False),
    ],
)
def test_log_probs_that_nobody_asked_for_may_be_other_ones(device, path, left, right, covered):
    found = intended.recognise(CASE, [Difference(path, left, right)])
    assert (found is not None) is covered
    both = [
        Difference(path, left, right),
        Difference("requests[1].merged.generated_text", "a", "b"),
    ]
    assert intended.recognise(CASE, both) is None


@pytest.mark.parametrize(
    ("of", "left", "right", "covered"),
    [
        (1, [], None, True),  # the released run filed for the step that ended the request, alone
        (1, None, [], False),
        (1, [-1.0], None, True),
        (0, [], None, False),  # it has no stop word
    ],
)
def test_nothing_may_be_filed_for_a_request_that_ended_at_once(device, of, left, right, covered):
    case = oracles.Case(Configuration(requests=(Plan(), Plan(stop=(1, 2)))), Observation())
    path = f"requests[{of}].parts[0].generated_log_probs"
    assert (intended.recognise(case, [Difference(path, left, right)]) is not None) is covered


LENGTH = ["ERROR_NONTRANSIENT", "MaxSequenceLengthOverflowError: request 0"]
BLOCKS = ["ERROR_NONTRANSIENT", "BlockOverflowError: request 0"]


@pytest.mark.parametrize(
    ("name", "left", "right", "covered"),
    [
        ("events", [LENGTH, ["FAIL", None]], [LENGTH, BLOCKS, ["FAIL", None]], True),
        ("events", [["FAIL", None]], [BLOCKS, ["FAIL", None]], False),  # it was not refused
        ("events", [LENGTH, ["FAIL", None]], [LENGTH, BLOCKS], False),
        ("events", [LENGTH, ["FAIL", None]], [BLOCKS, ["FAIL", None]], False),
        ("events", [BLOCKS, ["FAIL", None]], [BLOCKS, LENGTH, ["FAIL", None]], False),
        ("status", [LENGTH], [LENGTH, BLOCKS], False),
    ],
)
def test_a_refused_request_may_be_told_of_its_blocks_too(device, name, left, right, covered):
    for of in ("merged", "parts[0]"):
        found = intended.recognise(CASE, [Difference(f"requests[0].{of}.{name}", left, right)])
        assert (found is not None) is covered


PART = {
    "generated_tokens": [],
    "generated_log_probs": None,
    "prompt_log_probs": None,
    "tpot": None,
    "stop_word_ids": [[7]],
    "status": "ACTIVE_AND_GENERATING_TOKENS",
}
AFTER = {
    **PART,
    "generated_tokens": [1],
    "generated_log_probs": [-1.0],
    "prompt_log_probs": [-2.0],
    "tpot": 1,
}


@pytest.mark.parametrize(
    ("path", "left", "right", "covered"),
    [
        ("parts[1].stop_word_ids", None, [[7]], True),
        ("parts[1].stop_word_ids", None, [[8]], False),  # those of another
        ("parts[1].stop_word_ids", [[7]], None, False),
        ("parts[0].stop_word_ids", None, [[7]], False),
        ("parts[1].status", None, "ACTIVE_AND_GENERATING_TOKENS", True),
        ("parts[1].status", None, "FAILED", False),
        ("merged.status", None, "ACTIVE_AND_GENERATING_TOKENS", True),  # the engine has ended
        ("merged.status", None, "COMPLETED", False),
        ("parts[1].generated_length", None, 1, False),
        ("merged.tpot", None, 2, True),
        ("merged.tpot", None, 1, False),
        ("merged.tpot", 1, 2, False),
        ("merged.generated_log_probs", None, [-1.0, -1.0], True),
        ("merged.generated_log_probs", None, [-1.0], False),
        ("merged.prompt_log_probs", None, [-2.0], True),
        ("merged.prompt_log_probs", None, [-1.0], False),
    ],
)
def test_a_request_of_several_parts_keeps_what_it_has(path, left, right, covered):
    record = {"requests": [{"parts": [PART, AFTER, AFTER], "merged": {}}]}
    case = oracles.Case(Configuration(requests=(Plan(log_probs="all"),)), Observation(record))
    differences = [Difference(f"requests[0].{path}", left, right)]
    assert (intended.recognise(case, differences) is not None) is covered
    beside = [*differences, Difference("end.random", "a", "b")]
    assert intended.recognise(case, beside) is None
    # A first part that has tokens has what belongs to them, or nothing was filed.
    first = {**PART, "generated_tokens": [1]}
    record = {"requests": [{"parts": [first, AFTER, AFTER], "merged": {}}]}
    case = oracles.Case(case.configuration, Observation(record))
    kept = path.startswith("parts") or path.endswith("status")
    assert (intended.recognise(case, differences) is not None) is (covered and kept)


@pytest.mark.parametrize(
    ("error", "type_", "covered"),
    [({}, "TypeError", True), (None, "TypeError", False), ({}, "KeyError", False)],
)
def test_where_the_engine_has_ended_what_could_not_be_merged_may_be(error, type_, covered):
    merged = {"type": type_, "text": "", "place": "m:merge", "during": "merge"}
    record = {"error": error, "requests": [{"parts": [PART, AFTER], "merged": merged}]}
    case = oracles.Case(Configuration(), Observation(record))
    differences = [Difference("requests[0].merged.during", "merge", "(missing)")]
    assert (intended.recognise(case, differences) is not None) is covered


STOPPED = oracles.Case(Configuration(requests=(Plan(length=8, stop=(2, 2)),)), Observation())


@pytest.mark.parametrize(
    ("left", "right", "covered"),
    [
        ([-1.0, -2.0, -3.0, -4.0], [-1.0], True),  # the word, and the step that ends the request
        ([-1.0], None, True),
        ([-1.0, -2.0, -3.0, -4.0], [], False),
        ([-1.0, -2.0], [-2.0], False),
    ],
)
def test_log_probs_of_a_stop_word_that_nobody_asked_for_go(device, left, right, covered):
    for name in ("generated_log_probs", "prompt_log_probs"):
        path = f"requests[0].parts[0].{name}"
        found = intended.recognise(STOPPED, [Difference(path, left, right)])
        assert (found is not None) is covered


PLANS = (
    Plan(),
    Plan(sampling=(1.0, 0, 0.9)),
    Plan(log_probs="generated", top_n=1),
)
EVICTED = Difference("end.evicted", 6, 4)
LATER = Difference("outputs[8].digest", "a", "b")


def _case(prefix: str | None = "LRU", **facts: int) -> oracles.Case:
    """A run of nine forward passes, in which a request was left out after the sixth."""
    shortage = {"passes": 6, "evicted": 1, "cached": 2, "shared": 0, **facts}
    observation = Observation(
        forwards=[Forward(0) for _ in range(9)], shortages=[Shortage(**shortage)]
    )
    return oracles.Case(Configuration(requests=PLANS, prefix=prefix), observation)


@pytest.mark.parametrize(
    ("path", "left", "right", "covered"),
    [
        ("steps[3][0][1]", 1, 2, True),
        ("outputs[8].shape[1]", 1, 2, True),
        ("end.sampling", "a", "b", True),
        ("end.random", "a", "b", False),
        ("end.free blocks", 1, 2, False),
        ("requests[0].parts", [], [{}], True),
        ("requests[0].merged.events", [], [["EVICT", None]], True),
        ("requests[0].merged.kv_cache_epoch", 1, 2, True),
        ("requests[0].merged.generated_tokens", [1, 2], [1], False),
        ("requests[0].merged.generated_tokens[1]", 1, 2, False),
        ("requests[0].merged.generated_text", "31 4229", "31 42 29", True),  # of two parts
        ("requests[0].merged.generated_text", "31 4229", "31 42 28", False),
        ("requests[0].merged.generated_log_probs", [-1.0], [-1.0, -2.0], True),  # unasked
        ("requests[0].merged.generated_top_n_logprobs", None, [], False),
        ("requests[0].merged.status", "COMPLETED", "FAILED", False),
        ("requests[1].merged.generated_tokens[1]", 1, 2, True),  # drawn in another step
        ("requests[1].merged.prompt_tokens[1]", 1, 2, False),
        ("requests[1].merged.status", "COMPLETED", "FAILED", False),
        ("requests[2].merged.generated_log_probs[1]", -1.0, -1.00001, True),
        ("requests[2].merged.generated_log_probs[1]", -1.0, -1.1, False),
        ("requests[2].merged.generated_log_probs", [-1.0], [-1.0, -2.0], False),
        ("requests[2].merged.generated_top_n_logprobs[1].7", -1.0, -1.00001, True),
        ("requests[2].merged.generated_top_n_logprobs[1].7", -1.0, "(missing)", False),
        ("requests[2].merged.generated_tokens[1]", 1, 2, False),
    ],
)
def test_other_evictions_change_when_the_model_runs_and_no_greedy_answer(
    device, path, left, right, covered
):
    for first in ([], [EVICTED]):
        differences = [*first, LATER, Difference(path, left, right)]
        assert (intended.recognise(_case(), differences) is not None) is covered


@pytest.mark.parametrize(
    ("prefix", "facts", "covered"),
    [
        ("LRU", {}, True),
        ("LRU", {"evicted": 0}, True),  # paused, and some are cached
        ("LRU", {"cached": 0}, False),
        ("LRU", {"cached": 0, "shared": 1}, True),
        ("LRU", {"cached": 0, "shared": 1, "evicted": 0}, False),
        ("LRU", {"passes": 8}, True),
        ("LRU", {"passes": 9}, False),  # the ninth is another one already
        ("REF_ZERO", {}, False),
        ("REF_ZERO", {"shared": 1}, True),
        (None, {}, False),
        (None, {"shared": 1}, False),
    ],
)
def test_others_are_evicted_where_blocks_are_cached_or_shared(device, prefix, facts, covered):
    found = intended.recognise(_case(prefix, **facts), [EVICTED, LATER])
    assert (found is not None) is covered
    # More of them is as it may be.
    more = [Difference("end.evicted", 4, 6), LATER]
    assert (intended.recognise(_case(prefix, **facts), more) is not None) is covered


@pytest.mark.parametrize(
    ("right", "covered"),
    [
        (["a"] * 6 + ["b"], True),
        (["a"] * 5 + ["b"], False),  # before anybody was left out
        (["a"] * 6, True),
        (["a"] * 5, False),
        (["a"] * 10, True),
    ],
)
def test_outputs_of_another_number_differ_from_the_first_other_one(device, right, covered):
    differences = [EVICTED, Difference("outputs", ["a"] * 9, right)]
    assert (intended.recognise(_case(), differences) is not None) is covered


TIGHT = (
    '{"requests":[{"stem":4,"length":14,"num_tokens":10},{"stem":%d,"length":14,"num_tokens":10,'
    '"arrival":1},{"length":18,"num_tokens":7}],"spare_blocks":0,"paused_blocks":%d,'
    '"block_size":4,"prefix":%s}'
)


@pytest.mark.skipif(RELEASE not in SpecifierSet(">=0.17"), reason="it shares no blocks")
@pytest.mark.parametrize(
    ("stem", "paused", "prefix", "first"),
    [
        (4, 4, "LRU", Shortage(passes=3, evicted=1, cached=4, shared=3)),
        (3, 0, "REF_ZERO", Shortage(passes=13, evicted=1, cached=0, shared=2)),
        (3, 4, None, Shortage(passes=3, evicted=0, cached=0, shared=0)),
    ],
)
def test_a_run_notes_who_was_left_out_and_for_want_of_what(device, stem, paused, prefix, first):
    configuration = decode(TIGHT % (stem, paused, json.dumps(prefix)))
    observation = Planted().runner()(configuration, "none")
    assert observation.record["error"] is None
    assert observation.shortages[0] == first
    evicted = sum(shortage.evicted for shortage in observation.shortages)
    assert evicted == observation.record["end"]["evicted"]


def test_a_run_with_room_for_all_notes_nobody(device):
    assert not Planted().runner()(Configuration(), "none").shortages


@pytest.mark.parametrize(
    ("path", "covered"),
    [
        ("requests[0].merged.prompt_log_probs[7]", True),
        ("requests[0].parts[0].prompt_log_probs[7]", True),
        ("requests[0].parts[1].prompt_log_probs[11]", True),
        ("requests[0].parts[1].prompt_log_probs[7]", False),  # it was cut elsewhere
        ("requests[0].merged.prompt_log_probs[8]", False),
        ("requests[1].merged.prompt_log_probs[7]", False),  # in one piece
        ("requests[0].merged.generated_log_probs[7]", False),
        ("requests[0].merged.prompt_log_probs", False),
    ],
)
def test_log_probs_differ_where_a_chunk_begins(device, path, covered):
    rows = [[(0, 0, 0, 8), (1, 0, 0, 20)], [(0, 0, 8, 9)], [(0, 1, 0, 12)], [(0, 1, 12, 7)]]
    forwards = [Forward(0, rows=[*row]) for row in rows]
    observation = Observation({"requests": [{"parts": []}] * 2}, forwards)
    case = oracles.Case(Configuration(requests=(Plan(), Plan())), observation)
    found = intended.recognise(case, [Difference(path, -1.0, -2.0)])
    assert (found is not None) is covered
    if found is not None:
        assert found.patch == "prompt-chunk-logprobs"


@pytest.mark.parametrize(
    ("path", "suspension", "covered"),
    [
        ("requests[1].merged.generated_log_probs", "recompute", True),
        ("requests[1].parts[0].prompt_log_probs[3]", "recompute", True),
        ("requests[1].merged.generated_log_probs", "offload", False),
        ("requests[0].merged.generated_log_probs", "recompute", False),  # it wants them
        ("requests[2].merged.generated_log_probs", "recompute", False),  # it does not begin again
        ("requests[1].merged.generated_tokens", "recompute", False),
    ],
)
def test_lists_that_nobody_asked_for_begin_again(device, path, suspension, covered):
    forwards = [
        Forward(0, rows=[(0, 0, 0, 8), (1, 0, 0, 8), (2, 0, 0, 8)]),
        Forward(0, rows=[(0, 0, 0, 8), (1, 0, 0, 8), (2, 0, 8, 9)]),
    ]
    plans = (Plan(log_probs="all"), Plan(), Plan())
    configuration = Configuration(requests=plans, suspension=suspension)
    observation = Observation({"requests": [{"parts": []}] * 3}, forwards)
    case = oracles.Case(configuration, observation)
    found = intended.recognise(case, [Difference(path, [-1.0, -2.0], [-2.0, -1.0])])
    assert (found is not None) is covered


@pytest.mark.parametrize(
    ("name", "left", "right", "covered"),
    [
        ("generated", [], [-1.0], True),
        ("generated", [-2.0], [-1.0, -2.0], True),
        ("generated", [-2.0], [-1.0, -3.0], False),
        ("prompt", [-3.0, -1.0], [-3.0], True),
        ("prompt", [-3.0, -1.0], [-4.0], False),
        ("prompt", [-3.0, -1.0], [-3.0, -2.0], False),
    ],
)
def test_the_first_generated_log_prob_goes_to_those(device, name, left, right, covered):
    path = f"requests[0].parts[0].{name}_log_probs"
    for merged in ({}, {"merged": {}}):
        observation = Observation({"requests": [{"parts": [], **merged}]}, [])
        case = oracles.Case(Configuration(requests=(Plan(log_probs="all"),)), observation)
        found = intended.recognise(case, [Difference(path, left, right)])
        assert (found is not None) is (covered and not merged)


EVICTED_BEFORE = (
    '{"requests":[{"stem":7,"length":9,"num_tokens":12,"arrival":3},{"stem":2,"num_tokens":13,'
    '"arrival":4},{"stem":5,"length":5,"num_tokens":11,"arrival":3},{"stem":4,"length":9,'
    '"num_tokens":9},{"stem":3,"length":3,"num_tokens":12,"arrival":3}],"spare_blocks":2,'
    '"block_size":4,"only_last":false,"prefix":"LRU","scheduling":"async"}'
)


@pytest.mark.skipif(RELEASE < Version("0.19"), reason="it has no asynchronous scheduling")
def test_an_eviction_before_the_pass_of_a_step_is_noted(device):
    observation = Planted().runner()(decode(EVICTED_BEFORE), "none")
    noted = sum(shortage.evicted for shortage in observation.shortages)
    assert noted == observation.record["end"]["evicted"] > 0


def test_the_log_prob_of_a_chunk_that_nobody_asked_for_is_told_by_its_value(device):
    """A list of a cached prompt that is read in chunks may have those of one chunk only."""
    prompt = Plan(length=20)
    observation = Observation(
        {"requests": [{"parts": []}]},
        [Forward(0, [(0, 0, 8, 4)]), Forward(0, [(0, 0, 12, 8)])],
    )
    case = oracles.Case(Configuration(requests=(prompt,)), observation)
    rows = oracles.reference(case, prompt.prompt).log_softmax(-1)
    right, other = (float(rows[place - 1, prompt.prompt[place]]) for place in (12, 11))
    for value, covered in ((right, True), (other, False), (right + 0.01, False)):
        difference = Difference("requests[0].merged.prompt_log_probs[0]", -1.0, value)
        assert (intended.recognise(case, [difference]) is not None) is covered
    asked = oracles.Case(Configuration(requests=(Plan(length=20, log_probs="all"),)), observation)
    assert intended.recognise(asked, [Difference(difference.path, -1.0, right)]) is None
