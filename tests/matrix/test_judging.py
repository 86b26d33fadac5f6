"""What the matrix takes for right and for wrong, shown by planted patches that change one thing."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
from packaging.version import Version

from tools.differential import comparing, defects, judging, oracles
from tools.differential.configuration import Configuration, Happening, Plan, decode
from tools.differential.defects import Defect

from ..conftest import RELEASE
from .conftest import Planted

LEGACY = "legacy" if RELEASE >= Version("0.19") else None
PER_REQUEST = RELEASE >= Version("0.16")

CONFIGURATION = Configuration(requests=(Plan(stem=1, length=9), Plan(stem=2, length=5, arrival=2)))


def judge(configuration: Configuration = CONFIGURATION, **changes) -> judging.Judgement:  # type: ignore[no-untyped-def]
    return judging.judge(configuration, Planted(**changes).runner())


def kinds(judgement: judging.Judgement) -> set[str]:
    return {finding.kind for finding in judgement.findings}


def another_token(engine_class):  # type: ignore[no-untyped-def]
    """A step after which the last token of each request is another one."""
    original = engine_class.post_process_requests

    def post_process_requests(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        result = original(self, *args, **kwargs)
        for request in (getattr(entry, "record", [entry])[-1] for entry in self.requests.values()):
            if request.generated_tokens:
                request.generated_tokens[-1] ^= 1
        return result

    return (engine_class, "post_process_requests", post_process_requests)


def more_random_numbers(engine_class):  # type: ignore[no-untyped-def]
    """A step that draws one random number more."""
    import torch

    original = engine_class.post_process_requests

    def post_process_requests(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        torch.rand(1)
        return original(self, *args, **kwargs)

    return (engine_class, "post_process_requests", post_process_requests)


def raising(engine_class):  # type: ignore[no-untyped-def]
    def post_process_requests(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        raise KeyError("planted")

    return (engine_class, "post_process_requests", post_process_requests)


def test_patches_that_change_nothing_are_no_finding(device):
    judgement = judge()
    assert not judgement.findings
    assert not judgement.fixed


@pytest.mark.parametrize("plant", [another_token, more_random_numbers, raising])
def test_a_performance_patch_may_change_nothing(engine_class, plant):
    assert "performance" in kinds(judge(performance=[plant(engine_class)]))


def test_a_correctness_patch_that_changes_a_right_run_is_harm(engine_class):
    judgement = judge(correctness=[another_token(engine_class)])
    assert kinds(judgement) == {"harm"}
    assert judgement.findings[0].complaints[0].kind == "token"


def test_a_correctness_patch_whose_difference_nothing_proves_is_found(engine_class):
    assert kinds(judge(correctness=[more_random_numbers(engine_class)])) == {"unproven"}


def test_a_correctness_patch_that_mends_what_is_wrong_is_right(engine_class, monkeypatch):
    original = engine_class.post_process_requests
    owner, name, wrong = another_token(engine_class)
    monkeypatch.setattr(owner, name, wrong)
    judgement = judge(correctness=[(owner, name, original)])
    assert not judgement.findings
    assert judgement.fixed


def test_a_performance_patch_on_top_of_what_is_mended_may_change_nothing(engine_class, monkeypatch):
    original = engine_class.post_process_requests
    owner, name, wrong = raising(engine_class)
    monkeypatch.setattr(owner, name, wrong)
    planted = Planted(correctness=[(owner, name, original)])
    run_with = planted.runner()

    def and_performance(configuration, selection):  # type: ignore[no-untyped-def]
        seen = run_with(configuration, selection)
        if selection == "all":
            seen.record["end"]["random"] = "another"
        return seen

    (finding,) = judging.judge(CONFIGURATION, and_performance).findings
    assert finding.between == ("correctness", "all")
    assert [item.path for item in finding.differences] == ["end.random"]


def test_what_is_wrong_with_both_is_found_unless_its_cause_is_known(engine_class, monkeypatch):
    owner, name, wrong = another_token(engine_class)
    monkeypatch.setattr(owner, name, wrong)
    assert kinds(judge()) == {"defect"}
    known = Defect("planted", ">=0", "a test plants it", lambda case, item: item.kind == "token")
    monkeypatch.setattr(defects, "DEFECTS", (known,))
    judgement = judge()
    assert not judgement.findings
    assert judgement.known == ["planted"]


def test_a_leak_of_blocks_is_wrong(engine_class, monkeypatch):
    from tools.differential import blocks

    allocator = type(blocks.allocator(_context()))
    name = next(
        n for n in ("release_memory_blocks", "release_memory_chunks") if n in vars(allocator)
    )
    original = getattr(allocator, name)

    def release(self, released):  # type: ignore[no-untyped-def]
        return original(self, released[1:])

    judgement = judge(correctness=[(allocator, name, release)])
    assert "blocks" in {item.kind for finding in judgement.findings for item in finding.complaints}


def _context():  # type: ignore[no-untyped-def]
    from megatron_patch import testing

    return testing.build_context(testing.EngineSpec())


def test_weights_that_change_are_followed(device):
    """The oracle knows which weights a token comes from, and finds no fault with a right run."""
    happenings = (Happening(2, "train"), Happening(4, "update"), Happening(5, "evaluate"))
    configuration = replace(CONFIGURATION, happenings=happenings)
    observation = Planted().runner()(configuration, "none")
    assert observation.record["error"] is None
    assert len(observation.weights) == 3
    assert {forward.version for forward in observation.forwards} == {0, 1, 2}
    assert not oracles.complaints(configuration, observation)


@pytest.mark.skipif(RELEASE < Version("0.17"), reason=f"{RELEASE} has no speculative tokens")
def test_a_run_knows_nothing_of_a_model_that_was_trained_before(device):
    """One that drafts more tokens has more losses than Megatron has made room for."""
    for drafts in (1, 2):
        trained = Configuration(
            requests=(Plan(num_tokens=4),),
            happenings=(Happening(1, "train"),),
            only_last=False,
            speculative=drafts,
        )
        assert Planted().runner()(trained, "none").record["error"] is None


@pytest.mark.skipif(not PER_REQUEST, reason=f"{RELEASE} samples all requests alike")
def test_a_patch_that_loses_a_log_prob_is_harm(engine_class):
    original = engine_class.post_process_requests

    def post_process_requests(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        result = original(self, *args, **kwargs)
        for entry in self.requests.values():
            if len(entry.record[-1].generated_log_probs or ()) == 2:
                entry.record[-1].generated_log_probs.pop()
        return result

    plan = replace(CONFIGURATION.requests[0], log_probs="generated")
    change = (engine_class, "post_process_requests", post_process_requests)
    judgement = judge(Configuration(requests=(plan,)), correctness=[change])
    (finding,) = judgement.findings
    assert (finding.kind, finding.complaints[0].kind) == ("harm", "count")


def test_attribution_names_the_patch(engine_class):
    change = another_token(engine_class)
    run_with = Planted(performance=[change]).runner()
    (finding, *_) = judging.judge(CONFIGURATION, run_with).findings

    def with_ids(configuration, selection):  # type: ignore[no-untyped-def]
        guilty = selection.startswith("performance") and "-guilty" not in selection
        return run_with(configuration, "performance" if guilty else "none")

    assert judging.attribute(CONFIGURATION, finding, with_ids, ["other", "guilty"]) == ["guilty"]


def test_an_exception_is_told_with_its_place():
    facts = {"place": "megatron.core.one:function", "during": "step 3"}
    one = oracles.Complaint("exception", None, "IndexError: index 1", facts)
    assert str(one) == "exception: IndexError: index 1 (megatron.core.one:function, step 3)"
    assert one == oracles.Complaint("exception", None, "IndexError: index 1")
    assert str(oracles.Complaint("token", 2, "wrong", facts)) == "token: request 2: wrong"


def test_differences_are_bit_for_bit():
    left = {"a": [1.0, float("nan")], "b": 1, "c": None}
    assert not comparing.differences(left, {**left, "a": [1.0, float("nan")]})
    found = comparing.differences(left, {"a": [1.0 + 1e-16, 2.0], "b": 1.0, "d": None})
    assert [str(item) for item in found] == [
        "a[1]: nan -> 2.0",
        "b: 1 -> 1.0",
        "c: None -> '(missing)'",
        "d: '(missing)' -> None",
    ]
    assert [item.kind for item in found] == ["a[]", "b", "c", "d"]


@pytest.mark.skipif(RELEASE < Version("0.17"), reason="it takes no stop words out of the answer")
@pytest.mark.parametrize("also", [False, True])
def test_no_stop_word_was_taken_from_what_each_pass_gave_a_token_of(device, also):
    """A stop word can have shortened the answer only if there were more passes than tokens."""
    plan = Plan(length=8, num_tokens=8, sampling=(1.0, 0, 0.9), stop=(2, 1))
    configuration = Configuration(requests=(plan,), scheduling=LEGACY)
    observation = Planted().runner()(configuration, "none")
    assert not oracles.complaints(configuration, observation)
    (part,) = observation.record["requests"][0]["parts"]
    assert len(part["generated_tokens"]) == len(observation.forwards) == 8
    part["generated_tokens"].pop()
    if also:
        observation.forwards.pop()
    found = [item.kind for item in oracles.complaints(configuration, observation)]
    assert found == (["ends early"] if also else [])


@pytest.mark.skipif(not PER_REQUEST, reason=f"{RELEASE} samples all requests alike")
def test_what_an_engine_that_ends_has_handed_out_is_judged(device):
    """Tokens are right or wrong however many there are, and who is completed has all log probs."""
    plans = (
        Plan(stem=1, num_tokens=3, log_probs="generated"),
        Plan(stem=2, num_tokens=9, log_probs="generated"),
    )
    configuration = Configuration(requests=plans, scheduling=LEGACY)
    observation = Planted().runner()(configuration, "none")
    observation.record["error"] = {"type": "KeyError", "text": "7", "place": "", "during": ""}
    completed, begun = (request["parts"][0] for request in observation.record["requests"])
    begun["status"] = "ACTIVE_AND_GENERATING_TOKENS"
    begun["generated_log_probs"].pop()  # it may have been lost with the step that raised

    def found() -> list[tuple[str, int | None]]:
        return [
            (item.kind, item.request) for item in oracles.complaints(configuration, observation)
        ]

    assert found() == [("exception", None)]
    begun["generated_tokens"][4] ^= 1
    assert found() == [("exception", None), ("token", 1)]
    for part in (completed, observation.record["requests"][0]["merged"]):
        part["generated_log_probs"] = part["generated_log_probs"][:-1]
    assert found() == [("exception", None), ("count", 0), ("token", 1)]


BLOCK = (
    '{"requests":[{"length":22},{"stem":4,"length":5,"num_tokens":7,"arrival":3},{"stem":1,'
    '"length":13,"num_tokens":7}],"spare_blocks":0,"only_last":false,"speculative":1}'
)


@pytest.mark.skipif(RELEASE < Version("0.17"), reason="it has no speculative tokens")
@pytest.mark.parametrize(
    ("after", "astray", "left"),
    [
        (0, True, []),  # it reads memory that nobody wrote
        (-1, True, ["performance"]),  # it differs before that
        (0, False, ["performance"]),  # nothing goes astray
        (None, True, ["performance"]),  # it does the same twice
    ],
)
def test_a_run_that_reads_what_nobody_wrote_says_nothing(device, after, astray, left):
    configuration = decode(BLOCK)
    observation = Planted().runner()(configuration, "none")
    case = oracles.Case(configuration, observation)
    first = min(defects.spoilt_by_drafts(case).values())
    again = replace(observation, record=deepcopy(observation.record))
    if after is not None:
        again.record["outputs"][first + after]["digest"] = "another"
    if not astray:
        for forward in observation.forwards:
            forward.astray.clear()
    finding = judging.Finding("performance", ("correctness", "all"))
    judgement = judging.Judgement([finding])
    seen = {"correctness": observation}
    judging._leave_out_unwritten(configuration, seen, "correctness", lambda *_: again, judgement)
    assert [item.kind for item in judgement.findings] == left
    assert judgement.unstable is not bool(left)
    other = judging.Judgement([judging.Finding("performance", ("none", "performance"))])
    judging._leave_out_unwritten(configuration, seen, "correctness", lambda *_: again, other)
    assert other.findings
    assert not other.unstable


@pytest.mark.skipif(RELEASE < Version("0.17"), reason="it has no speculative tokens")
@pytest.mark.parametrize(
    ("on_cpu", "first", "left"),
    [
        (False, 0, []),  # which of two requests has written last is up to the GPU
        (False, -1, ["performance"]),  # it differs before that
        (True, 0, ["performance"]),  # a CPU writes in the order of the rows
    ],
)
def test_what_two_requests_write_to_one_slot_says_nothing_on_a_gpu(
    device, mocker, on_cpu, first, left
):
    configuration = decode(BLOCK)
    observation = Planted().runner()(configuration, "none")
    size = configuration.block_size
    forwards = observation.forwards
    number = next(number for number, forward in enumerate(forwards) if len(forward.rows) > 1)
    forward = forwards[number]
    (_, _, offset, _), table = forward.rows[1], forward.tables[1]
    forward.astray = [(0, offset % size, table[offset // size])]
    mocker.patch.object(judging, "running").return_value.on_cpu = on_cpu
    path = f"outputs[{number + first}].digest"
    finding = judging.Finding(
        "performance", ("none", "all"), (comparing.Difference(path, "a", "b"),)
    )
    judgement = judging.Judgement([finding])
    judging._leave_out_undefined(configuration, {"none": observation}, judgement)
    assert [item.kind for item in judgement.findings] == left
    assert judgement.unstable is not bool(left)
