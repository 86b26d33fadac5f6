"""What releases get wrong is recognised by its cause, and only that."""

from __future__ import annotations

from dataclasses import replace

import pytest
from packaging.specifiers import SpecifierSet

from tools.differential import defects, judging, oracles
from tools.differential.configuration import Configuration, decode
from tools.differential.oracles import Complaint

from ..conftest import RELEASE
from .conftest import Planted

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
        "graphs of a layer first called without gradients",
        ">=0.18",
        '{"requests":[{"num_tokens":1}],"lessons":["look","train","look"],"captured":true}',
    ),
    (
        "graphs captured again",
        ">=0.17",
        '{"requests":[{"length":8,"num_tokens":8}],"happenings":[{"step":3}],"graphs":1,'
        '"scope":"layer","suspension":"offload"}',
    ),
    (
        "nothing to sample after a suspension",
        ">=0.19",
        '{"requests":[{"length":8,"num_tokens":8}],"happenings":[{"step":3,"steps":2}],'
        '"suspension":"recompute","scheduling":"async"}',
    ),
]


@pytest.mark.parametrize(("name", "releases", "text"), SHOWN)
def test_a_release_is_as_wrong_as_is_known(name, releases, text):
    configuration = decode(text)
    if RELEASE not in SpecifierSet(releases):
        pytest.skip(f"{RELEASE} does otherwise, or has no such thing")
    judgement = judging.judge(configuration, Planted().runner())
    assert not judgement.findings
    assert name in judgement.known


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
    """The same complaints, of a run in which nothing of the kind was observed."""
    plan = replace(Configuration().requests[0], log_probs="generated")
    configuration = Configuration(requests=(plan,))
    observation = Planted().runner()(configuration, "none")
    case = oracles.Case(configuration, observation)
    assert defects.recognise(case, complaint) is None
