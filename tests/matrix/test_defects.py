"""Known defects of releases are recognised by their causes, and nothing else is."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import cache

import pytest
from packaging.specifiers import SpecifierSet

import megatron_patch
from megatron_patch.backports import SERIES
from tools.differential import defects, judging, oracles
from tools.differential.comparing import Difference
from tools.differential.configuration import Configuration, decode
from tools.differential.defects import Defect
from tools.differential.observing import Observation
from tools.differential.oracles import Complaint
from tools.differential.selections import Selections

from ..conftest import RELEASE
from .conftest import Planted

BLOCK = (
    '{"requests":[{"length":22},{"stem":4,"length":5,"num_tokens":7,"arrival":3},{"stem":1,'
    '"length":13,"num_tokens":7}],"spare_blocks":0,"only_last":false,"speculative":1}'
)
ROW = (
    '{"requests":[{"length":36,"num_tokens":3},{"stem":4,"num_tokens":13},{"stem":3,"length":43,'
    '"num_tokens":14},{"stem":5,"length":28,"num_tokens":12}],"spare_blocks":2,"paused_blocks":4,'
    '"block_size":4,"only_last":false,"chunked":true,"speculative":2,"scheduling":"async"}'
)
ENDS = '{"requests":[{"stem":4,"num_tokens":12,"end":5}],"only_last":false,"speculative":1}'

SHOWN = [
    (
        "log probs of a cached prompt",
        ">=0.18",
        '{"requests":[{"length":16,"log_probs":"all"},{"length":16,"arrival":3,"log_probs":"all"}],'
        '"only_last":false,"prefix":"REF_ZERO","block_size":4}',
    ),
    (
        "log probs of a prompt that is cut",
        ">=0.16",
        '{"requests":[{"length":44,"log_probs":"all"},{"stem":4,"length":44,"log_probs":"all"}],'
        '"only_last":false,"chunked":true}',
    ),
    (
        "log probs of a prompt that begins again",
        ">=0.17",
        '{"requests":[{"length":40,"num_tokens":8,"log_probs":"all"},{"stem":4,"length":44,'
        '"log_probs":"all"}],"happenings":[{"step":1}],"only_last":false,"chunked":true,'
        '"suspension":"recompute"}',
    ),
    (
        "the first generated token's log prob in the list of the prompt",
        "<0.16",
        '{"requests":[{"length":8,"log_probs":"all"}],"only_last":false}',
    ),
    (
        "top-n log probs of a chunk",
        ">=0.16",
        '{"requests":[{"length":44},{"stem":4,"length":44,"log_probs":"generated","top_n":1}],'
        '"chunked":true}',
    ),
    (
        "log probs of a stop word",
        ">=0.16",
        '{"requests":[{"length":8,"num_tokens":8,"log_probs":"generated","stop":[2,2]}]}',
    ),
    (
        "log probs of no token",
        ">=0.17",
        '{"requests":[{"length":8,"log_probs":"generated","stop":[0,1]}]}',
    ),
    (
        "a prefix from before an update",
        ">=0.18",
        '{"requests":[{"length":20,"num_tokens":4},{"length":20,"num_tokens":6,"arrival":8}],'
        '"happenings":[{"step":6,"what":"update"}],"prefix":"LRU","block_size":4}',
    ),
    (
        "stop words of a request that comes back",
        ">=0.16",
        '{"requests":[{"length":20,"num_tokens":12,"stop":[9,1]},{"stem":4,"length":20,'
        '"num_tokens":12,"stop":[9,1]},{"stem":2,"length":20,"num_tokens":14,"stop":[10,1]}],'
        '"spare_blocks":3,"block_size":4}',
    ),
    (
        "a refused request in a suspension",
        ">=0.17",
        '{"requests":[{"length":9,"num_tokens":8},{"length":70,"arrival":3}],'
        '"happenings":[{"step":3}],"suspension":"recompute"}',
    ),
    (
        "parts with and without log probs",
        ">=0.17",
        '{"requests":[{"length":8,"num_tokens":8,"log_probs":"generated","stop":[2,1]}],'
        '"happenings":[{"step":3}],"suspension":"recompute"}',
    ),
    (
        "graphs of a layer first called without gradients",
        ">=0.18",
        '{"requests":[{"num_tokens":1}],"lessons":["look","train","look"],"captured":true}',
    ),
    (
        "graphs of a model without gradient buffers",
        ">=0.19",
        '{"requests":[{"num_tokens":4}],"happenings":[{"step":1,"what":"train"}],"graphs":1,'
        '"scope":"layer","lessons":["train"],"captured":true}',
    ),
    (
        "graphs captured again",
        ">=0.17",
        '{"requests":[{"length":8,"num_tokens":8}],"happenings":[{"step":3}],"graphs":1,'
        '"scope":"layer","suspension":"offload"}',
    ),
    (
        "graphs captured between two chunks of a prompt",
        ">=0.17",
        '{"requests":[{"length":75,"num_tokens":3}],"happenings":[{"step":1}],"longest":96,'
        '"graphs":1,"scope":"layer","chunked":true,"suspension":"offload"}',
    ),
    (
        "nothing to sample after a suspension",
        ">=0.19",
        '{"requests":[{"length":8,"num_tokens":8}],"happenings":[{"step":3,"steps":2}],'
        '"suspension":"recompute","scheduling":"async"}',
    ),
    (
        "log probs by the wishes of another request",
        ">=0.19",
        '{"requests":[{"num_tokens":4},{"stem":1,"num_tokens":10,"log_probs":"generated","top_n":1}'
        ',{"stem":2,"arrival":5}],"scheduling":"async"}',
    ),
    (
        "log probs by the wishes of another request",
        ">=0.19",
        '{"requests":[{"num_tokens":4,"log_probs":"generated"},{"stem":1,"num_tokens":10,'
        '"log_probs":"generated","top_n":1}],"scheduling":"async","speculative":1,'
        '"only_last":false}',
    ),
    ("speculative tokens in the block of another request", ">=0.17", BLOCK),
    (
        "accepted speculative tokens counted twice",
        ">=0.17,<0.18",
        '{"requests":[{"stem":4,"num_tokens":8}],"only_last":false,"speculative":1}',
    ),
    ("speculative tokens of the request that had the row before", ">=0.19", ROW),
    (
        "single tokens in a padded step",
        ">=0.19",
        '{"requests":[{"length":8,"num_tokens":8},{"stem":1,"length":1,"num_tokens":4,'
        '"arrival":3}],"scheduling":"legacy","grouped":true}',
    ),
    ("a termination id among accepted speculative tokens", ">=0.17", ENDS),
    (
        "graphs of a layer first called without gradients",
        ">=0.18",
        '{"requests":[{"num_tokens":1}],"lessons":["evaluate","look","train","train","evaluate",'
        '"look"],"captured":true}',
    ),
    (
        "sampling parameters that no sampler takes",
        ">=0.14",
        '{"requests":[{"sampling":[1.0,5,0.9]}]}',
    ),
    (
        "sampling parameters of all requests that mean nothing",
        "<0.16",
        '{"requests":[{"sampling":[1.0,0,1.5]}]}',
    ),
    (
        "more blocks than there are",
        ">=0.16",
        '{"requests":[{"length":20,"num_tokens":14},{"length":9}],"spare_blocks":-2,'
        '"paused_blocks":4,"block_size":4}',
    ),
    (
        "a request that has outgrown a step",
        ">=0.17",
        '{"requests":[{"length":60,"num_tokens":14}],"happenings":[{"step":8}],"longest":96,'
        '"suspension":"recompute"}',
    ),
    ("an empty prompt", ">=0.14", '{"requests":[{"length":9},{"length":0,"arrival":2}]}'),
    (
        "an empty stop word where tokens are drafted",
        ">=0.17",
        '{"requests":[{"length":9,"num_tokens":8,"odd_stop":"empty"}],"only_last":false,'
        '"speculative":1}',
    ),
    (
        "recomputed activations of layers that draft",
        ">=0.18,<0.19",
        '{"requests":[{"num_tokens":8}],"happenings":[{"step":2,"what":"train"}],'
        '"only_last":false,"speculative":1,"recompute":true}',
    ),
    (
        "a sequence that is too long, at its turn",
        "<0.15",
        '{"requests":[{"length":9,"num_tokens":8},{"length":20,"num_tokens":60}]}',
    ),
]

needs_drafts = pytest.mark.skipif(
    RELEASE not in SpecifierSet(">=0.17"), reason=f"{RELEASE} has no speculative tokens"
)
needs_async = pytest.mark.skipif(
    RELEASE not in SpecifierSet(">=0.19"), reason=f"{RELEASE} has no asynchronous scheduling"
)


@cache
def _observed(text: str) -> Observation:
    return Planted().runner()(decode(text), "none")


def released(text: str) -> Observation:
    """A run of the configuration with nothing patched, which is made once."""
    return copy(_observed(text))


@pytest.mark.parametrize(("name", "releases", "text"), SHOWN)
def test_a_release_is_as_wrong_as_is_known(name, releases, text):
    if RELEASE not in SpecifierSet(releases):
        pytest.skip(f"{RELEASE} does otherwise, or has no such thing")
    judgement = judging.judge(decode(text), lambda *_: released(text))
    assert not judgement.findings
    assert name in judgement.known


def judged(text: str) -> judging.Judgement:
    """The judgement of a configuration, with the patches of the series."""
    judgement = judging.judge(decode(text), judging.runner(Selections()))
    megatron_patch.uninstall()
    return judgement


@needs_drafts
def test_a_model_whose_latents_are_cached_drafts_nothing(device):
    """A release does not come that far without its patch."""
    judgement = judged(
        '{"requests":[{"length":70,"num_tokens":7}],"block_size":64,"max_tokens":128,'
        '"longest":128,"only_last":false,"speculative":1,"latents":true}'
    )
    assert not judgement.findings
    assert judgement.known == ["drafts of a model whose latents are cached"]


@needs_async
def test_a_draft_behind_the_longest_sequence_does_not_go_astray(device):
    """It is kept where it belongs; the position that the model is given is the last that it has."""
    judgement = judged(
        '{"requests":[{"length":13,"num_tokens":51}],"longest":64,"only_last":false,'
        '"speculative":1,"scheduling":"async"}'
    )
    assert not judgement.findings
    assert judgement.fixed


def test_what_a_patch_mends_is_no_excuse_where_it_is_applied(device):
    """A complaint may come from several defects, each with patches of its own."""
    ids = {patch.id for patch in SERIES}
    for _, releases, text in SHOWN:
        if RELEASE not in SpecifierSet(releases):
            continue
        configuration = decode(text)
        case = oracles.Case(configuration, released(text))
        for complaint in oracles.complaints(configuration, case.observation):
            case.observation.patches = frozenset()
            while (defect := defects.recognise(case, complaint)) and defect.mended_by:
                assert ids.issuperset(defect.mended_by)
                case.observation.patches |= {*defect.mended_by}
                assert defects.recognise(case, complaint) is not defect


@pytest.mark.skipif(
    RELEASE not in SpecifierSet(">=0.15,<0.16"), reason=f"{RELEASE} keeps nothing that it refused"
)
def test_what_an_engine_keeps_of_what_it_refused_is_told_though_it_ended(device):
    """Its end is a defect of another cause, which is there with patches too."""
    text = (
        '{"requests":[{"length":2,"num_tokens":1},{"length":25,"num_tokens":48},{"length":5}],'
        '"happenings":[{"step":3,"what":"train"}],"block_size":4,"graphs":1,"scope":"layer"}'
    )
    found = oracles.complaints(decode(text), released(text))
    assert [(item.kind, item.request) for item in found] == [("exception", None), ("no answer", 1)]
    judgement = judging.judge(decode(text), judging.runner(Selections()))
    megatron_patch.uninstall()
    assert (judgement.findings, judgement.fixed) == ([], True)


@pytest.mark.skipif(
    RELEASE not in SpecifierSet(">=0.18"), reason=f"{RELEASE} measures no request by its blocks"
)
def test_a_request_that_was_refused_though_it_fits_is_told_though_the_engine_ended(device):
    """Its end is a defect of another cause, which is there with patches too."""
    text = (
        '{"requests":[{"stem":6,"length":75,"num_tokens":10},{"length":11,"num_tokens":9}],'
        '"happenings":[{"step":1}],"spare_blocks":-1,"block_size":4,"longest":96,"graphs":1,'
        '"scope":"layer","chunked":true,"suspension":"offload"}'
    )
    found = oracles.complaints(decode(text), released(text))
    assert [(item.kind, item.request) for item in found] == [("exception", None), ("status", 0)]
    judgement = judging.judge(decode(text), judging.runner(Selections()))
    megatron_patch.uninstall()
    assert (judgement.findings, judgement.fixed) == ([], True)


@pytest.mark.skipif(
    RELEASE not in SpecifierSet(">=0.18,<0.19"), reason=f"{RELEASE} files the top-n of no chunk"
)
def test_a_list_that_is_longer_than_its_tokens_is_told_though_the_engine_ended(device):
    """It ends at an empty prompt while a long one is read in part."""
    text = (
        '{"requests":[{"stem":6,"length":72,"num_tokens":8,"log_probs":"generated","top_n":3},'
        '{"length":0}],"longest":96,"only_last":false,"chunked":true}'
    )
    found = oracles.complaints(decode(text), released(text))
    assert ("count", 0) in [(item.kind, item.request) for item in found]
    judgement = judging.judge(decode(text), judging.runner(Selections()))
    megatron_patch.uninstall()
    assert (judgement.findings, judgement.fixed) == ([], True)


@pytest.mark.skipif(
    RELEASE not in SpecifierSet(">=0.19,<0.20"), reason=f"{RELEASE} schedules nothing ahead"
)
def test_a_request_that_cannot_be_merged_is_told_though_the_engine_ended(device):
    """It goes on when the engine ends, of what is wrong with patches too."""
    text = (
        '{"requests":[{"stem":3,"length":31,"num_tokens":7,"log_probs":"all","stop":[4,1]},'
        '{"stem":3,"length":28,"num_tokens":8,"log_probs":"all","stop":[1,3],"odd_stop":"long"},'
        '{"stem":7,"length":7,"arrival":16,"sampling":[1.0,0,0.0]}],"happenings":'
        '[{"step":6,"steps":3},{"step":5,"steps":3},{"step":1,"what":"evaluate","steps":2}],'
        '"block_size":4,"only_last":false,"prefix":"LRU","suspension":"recompute",'
        '"scheduling":"async"}'
    )
    found = oracles.complaints(decode(text), released(text))
    assert ("merge", 1) in [(item.kind, item.request) for item in found]
    judgement = judging.judge(decode(text), judging.runner(Selections()))
    megatron_patch.uninstall()
    assert (judgement.findings, judgement.fixed) == ([], True)


@pytest.mark.skipif(
    RELEASE not in SpecifierSet(">=0.17"), reason=f"{RELEASE} captures no graphs again"
)
@pytest.mark.parametrize("length", [75, 90])
def test_what_is_read_of_no_block_is_no_finding(device, length):
    """A kernel reads something else with each patch, and the stand-in refuses what it may."""
    configuration = decode(
        f'{{"requests":[{{"stem":6,"length":{length},"num_tokens":6}}],"happenings":[{{"step":1}}],'
        '"block_size":4,"longest":96,"graphs":1,"scope":"layer","chunked":true,'
        '"suspension":"offload"}'
    )
    judgement = judging.judge(configuration, judging.runner(Selections()))
    megatron_patch.uninstall()
    assert judgement.findings == []
    assert judgement.known == ["graphs captured between two chunks of a prompt"]


@pytest.mark.skipif(
    RELEASE not in SpecifierSet(">=0.17"), reason=f"{RELEASE} recomputes no suspended requests"
)
@pytest.mark.parametrize("hybrid", ["", ',"hybrid":0'])
def test_what_has_outgrown_a_step_comes_back_unless_the_model_is_a_hybrid(device, hybrid):
    configuration = decode(
        '{"requests":[{"length":60,"num_tokens":14}],"happenings":[{"step":8}],"longest":96,'
        f'"suspension":"recompute"{hybrid}}}'
    )
    judgement = judging.judge(configuration, judging.runner(Selections()))
    megatron_patch.uninstall()
    assert judgement.findings == []
    assert "a request that has outgrown a step" in judgement.known
    of_hybrids = "a request of a hybrid model that has outgrown a step"
    assert (of_hybrids in judgement.known) is bool(hybrid)


def _patches(name: str) -> tuple[str, ...]:
    """The patches that mend a defect."""
    (defect,) = (defect for defect in defects.DEFECTS if defect.name == name)
    return defect.mended_by


@pytest.mark.parametrize(
    ("name", "releases", "text"), [shown for shown in SHOWN if _patches(shown[0])]
)
def test_a_defect_excuses_no_run_with_the_patches_that_mend_it(device, name, releases, text):
    if RELEASE not in SpecifierSet(releases):
        pytest.skip(f"{RELEASE} does otherwise, or has no such thing")
    configuration = decode(text)
    selections = Selections()
    patched = judging.runner(selections)(configuration, "correctness")
    megatron_patch.uninstall()
    assert patched.patches >= {*_patches(name)} & {*selections.applied("correctness")}
    assert oracles.complaints(configuration, patched) == []
    case = oracles.Case(configuration, released(text))
    assert not case.observation.patches
    known = [
        complaint
        for complaint in oracles.complaints(configuration, case.observation)
        if getattr(defects.recognise(case, complaint), "name", None) == name
    ]
    assert known
    case.observation.patches = patched.patches
    assert {defects.recognise(case, complaint) for complaint in known} == {None}


def test_the_patches_of_defects_are_those_of_the_series():
    named = {name for defect in defects.DEFECTS for name in defect.mended_by}
    assert named <= {patch.id for patch in SERIES}


def test_a_defect_is_mended_by_all_patches_that_the_release_needs():
    def mended(patches: tuple[str, ...], *applied: str) -> bool:
        planted = Defect("planted", ">=0", "a test plants it", lambda *_: True, patches)
        return planted.is_mended(applied)

    always = [patch.id for patch in SERIES if str(RELEASE) in SpecifierSet(patch.releases)][:2]
    never = next(patch.id for patch in SERIES if str(RELEASE) not in SpecifierSet(patch.releases))
    assert not mended((), *always)
    assert not mended((*always, never), always[0])
    assert mended((*always, never), *always)


def test_each_defect_has_one_name_and_a_reason():
    names = [defect.name for defect in defects.DEFECTS]
    assert len(names) == len(set(names))
    assert all(defect.why for defect in defects.DEFECTS)
    assert {name for name, *_ in SHOWN} <= {*names}


@pytest.mark.parametrize(
    "complaint",
    [
        Complaint("token", 0, "another token", {"part": 0, "place": 0}),
        Complaint("log prob", 0, "another log prob", {"place": 0, "parts": 1}),
        Complaint("count", 0, "fewer", {"list": "generated_log_probs", "off": -1, "parts": 1}),
        Complaint("goes on", 0, "after its stop word", {"stop": [1], "at": 1}),
        Complaint("ends early", 0, "too early", {"missing": 1}),
        Complaint("blocks", None, "two blocks are gone"),
        Complaint("astray", None, "keys go to another block"),
        Complaint("draw", 0, "not drawn with its parameters", {"part": 0, "place": 0}),
        Complaint("logits", 0, "other logits", {"part": 0, "place": 0}),
        Complaint("status", 0, "FAILED"),
        Complaint("not refused", 0, "served", {"why": "a prompt is too long"}),
        Complaint("no error", 0, "no event says why"),
        Complaint(
            "exception",
            None,
            "KeyError",
            {"type": "KeyError", "text": "7", "place": "m:f", "during": "step 1"},
        ),
    ],
    ids=lambda complaint: complaint.kind,
)
def test_what_has_another_cause_is_not_known(device, complaint):
    """The same complaints, of a run in which the cause was not observed."""
    plan = replace(Configuration().requests[0], log_probs="generated")
    configuration = Configuration(requests=(plan,))
    observation = Planted().runner()(configuration, "none")
    case = oracles.Case(configuration, observation)
    assert defects.recognise(case, complaint) is None


WISHES = (
    '{"requests":[{"num_tokens":4,"log_probs":"generated"%s},{"stem":1,"num_tokens":10,'
    '"log_probs":"generated","top_n":1},{"stem":2,"arrival":%d}],"scheduling":"async"}'
)


def _lose_a_top_n(case: oracles.Case, consumed: int) -> Complaint:
    """Have a run lose the top-n log probs of a step, and the complaint of that."""
    (filed,) = (item for item in case.observation.filed[1] if item.consumed == consumed)
    filed.grown["generated_top_n_logprobs"] -= 1
    return Complaint("count", 1, "fewer", {"list": "generated_top_n_logprobs", "off": -1})


@needs_async
@pytest.mark.parametrize(
    ("wanted", "arrival", "step", "known"),
    [
        ("", 5, 0, True),  # the one that it is lost in
        ("", 5, 1, False),  # the one after it
        ("", 5, -1, False),
        (',"top_n":1', 5, 0, False),  # the row was of one that wants them
        ("", 12, 0, False),  # the rows are made anew first
    ],
)
def test_log_probs_are_lost_where_the_rows_are_of_others(device, wanted, arrival, step, known):
    configuration = decode(WISHES % (wanted, arrival))
    case = oracles.Case(configuration, Planted().runner()(configuration, "none"))
    complaints = oracles.complaints(configuration, case.observation)
    # Request 0 ends in the step that launches forward pass 4.
    lost = 4
    ends = case.observation.forwards[lost]
    assert ends.ahead
    assert ([row for row, *_ in ends.rows], ends.stayed) == ([0, 1], [1])
    if step == 0 and known:
        (complaint,) = complaints
        assert complaint.facts["list"] == "generated_top_n_logprobs"
    else:
        for filed in case.observation.filed[1]:
            filed.grown["generated_top_n_logprobs"] = filed.grown["generated_tokens"]
        complaint = _lose_a_top_n(case, lost + step)
    assert (defects.recognise(case, complaint) is not None) is known


def _seen(text: str) -> tuple[oracles.Case, Complaint]:
    """A run of the released engine, and its only complaint about a request."""
    configuration = decode(text)
    case = oracles.Case(configuration, Planted().runner()(configuration, "none"))
    found = oracles.complaints(configuration, case.observation)
    (complaint,) = (item for item in found if item.request is not None)
    return case, complaint


def _nothing_astray(case: oracles.Case, facts: dict[str, int]) -> None:
    for forward in case.observation.forwards:
        forward.astray.clear()


def _to_a_free_block(case: oracles.Case, facts: dict[str, int]) -> None:
    held = {n for forward in case.observation.forwards for row in forward.tables for n in row}
    for forward in case.observation.forwards:
        forward.astray = [(row, position, max(held) + 1) for row, position, _ in forward.astray]


def _within_a_block(case: oracles.Case, facts: dict[str, int]) -> None:
    for forward in case.observation.forwards:
        for row, position, _ in forward.astray:
            index, part, _, count = forward.rows[row]
            forward.rows[row] = (index, part, position - position % 8, count)


def _before_it(case: oracles.Case, facts: dict[str, int]) -> None:
    facts["place"] -= 1


@needs_drafts
@pytest.mark.parametrize("change", [_nothing_astray, _to_a_free_block, _within_a_block, _before_it])
def test_drafts_go_to_the_block_of_an_evicted_request(device, change):
    case, complaint = _seen(BLOCK)
    defect = defects.recognise(case, complaint)
    assert defect is not None
    assert defect.name == "speculative tokens in the block of another request"
    change(case, complaint.facts)
    assert defects.recognise(case, complaint) is None


def _not_accepted(case: oracles.Case, facts: dict[str, int]) -> None:
    (step,) = (filed for filed in case.observation.filed[0] if len(filed.tokens) > 1)
    after = replace(step, tokens=[step.tokens.pop()])
    case.observation.filed[0].insert(case.observation.filed[0].index(step) + 1, after)


def _after_the_draft(case: oracles.Case, facts: dict[str, int]) -> None:
    facts["place"] += 1


def _of_a_stop_word(case: oracles.Case, facts: dict[str, int]) -> None:
    del facts["place"]
    facts.update({"stop": [1], "at": 1})


@needs_drafts
@pytest.mark.parametrize("change", [_not_accepted, _after_the_draft, _before_it, _of_a_stop_word])
def test_a_termination_id_is_overlooked_in_what_a_step_accepts(device, change):
    case, complaint = _seen(ENDS)
    defect = defects.recognise(case, complaint)
    assert defect is not None
    assert defect.name == "a termination id among accepted speculative tokens"
    change(case, complaint.facts)
    assert defects.recognise(case, complaint) is None


@needs_drafts
def test_what_differs_is_told_from_what_drafts_in_another_block_spoil(device):
    case, complaint = _seen(BLOCK)
    index, place = complaint.request, complaint.facts["place"]

    def explained(name: str, at: int = place, request: int | None = index) -> bool:
        path = f"requests[{request}].merged.{name}[{at}]"
        return defects.explain(case, Difference(path, 1, 2))

    names = ("generated_tokens", "generated_log_probs", "generated_top_n_logprobs")
    assert all(map(explained, names))
    assert not any(explained(name, place - 1) for name in names)
    assert not explained("generated_tokens", 99)
    assert not explained("generated_tokens", request=1 - (index or 0))
    assert not explained("prompt_tokens")
    assert not defects.explain(case, Difference("end.evicted", 1, 2))
    _nothing_astray(case, {})
    assert not any(map(explained, names))


def _right_tokens(case: oracles.Case, facts: dict[str, int]) -> None:
    for filed in case.observation.filed[3]:
        filed.tokens = filed.tokens[-1:]


def _in_the_part_before(case: oracles.Case, facts: dict[str, int]) -> None:
    facts["place"] = 0


def _no_drafts_beside_it(case: oracles.Case, facts: dict[str, int]) -> None:
    (filed, *_) = (item for item in case.observation.filed[3] if item.part == 1)
    forward = case.observation.forwards[filed.consumed]
    forward.stayed = [3]


@needs_async
@pytest.mark.parametrize("change", [_right_tokens, _in_the_part_before, _no_drafts_beside_it])
def test_drafts_of_a_row_come_before_the_first_token_of_a_prompt(device, change):
    case, complaint = _seen(ROW)
    defect = defects.recognise(case, complaint)
    assert defect is not None
    assert defect.name == "speculative tokens of the request that had the row before"
    change(case, complaint.facts)
    assert defects.recognise(case, complaint) is None


@pytest.mark.skipif(RELEASE not in SpecifierSet(">=0.18"), reason="it is none of this release")
@pytest.mark.parametrize(
    ("lessons", "failed", "known"),
    [
        (("look", "train", "look"), 2, True),
        (("evaluate", "look", "train", "train", "evaluate"), 4, True),
        (("look", "train", "train"), 2, False),  # a step has a graph of its own
        (("evaluate", "train", "look"), 2, False),  # in evaluation mode nothing is recorded
        (("train", "look", "look"), 2, False),
        (("look", "look", "train"), 1, False),  # there are no graphs yet
        (("look", "train", "look", "look"), 3, False),  # it had failed before
    ],
)
def test_a_lesson_without_gradients_fails_after_the_first_step(device, lessons, failed, known):
    configuration = Configuration(lessons=lessons, captured=True)
    case = oracles.Case(configuration, Observation())
    text = "Fwd cudagraph received a different number of tensors than what it was graphed with!"
    facts = {"type": "AssertionError", "text": text, "place": "m:f", "during": f"lesson {failed}"}
    complaint = Complaint("exception", None, text, facts)
    assert (defects.recognise(case, complaint) is not None) is known


@pytest.mark.skipif(RELEASE not in SpecifierSet(">=0.17,<0.18"), reason="0.17 counts them twice")
def test_no_more_is_missing_than_the_last_step_accepted(device):
    text = '{"requests":[{"stem":4,"num_tokens":8}],"only_last":false,"speculative":1}'
    case, complaint = _seen(text)
    defect = defects.recognise(case, complaint)
    assert defect is not None
    assert defect.name == "accepted speculative tokens counted twice"
    more = Complaint("ends early", 0, "too early", {**complaint.facts, "missing": 2})
    assert defects.recognise(case, more) is None
    last = case.observation.filed[0][-1]
    last.tokens = last.tokens[-1:]
    assert defects.recognise(case, complaint) is None
