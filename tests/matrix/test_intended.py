"""What correctness patches change on purpose, and what only looks like it."""

from __future__ import annotations

import pytest

from tools.differential import intended, oracles
from tools.differential.comparing import Difference
from tools.differential.configuration import Configuration, Plan
from tools.differential.observing import Observation

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


SHARING = oracles.Case(
    Configuration(requests=(Plan(), Plan(sampling=(1.0, 0, 0.9))), prefix="LRU"), Observation()
)
EVICTED = Difference("end.evicted", 6, 4)


@pytest.mark.parametrize(
    ("path", "covered"),
    [
        ("steps[3][0][1]", True),
        ("outputs[8].digest", True),
        ("requests[0].parts", True),
        ("requests[0].merged.kv_cache_epoch", True),
        ("requests[0].merged.generated_tokens[1]", False),
        ("requests[0].merged.generated_log_probs[1]", False),
        ("requests[1].merged.generated_tokens[1]", True),  # drawn in another step
        ("end.blocks", False),
    ],
)
def test_fewer_evictions_change_when_the_model_runs_and_no_greedy_answer(device, path, covered):
    differences = [EVICTED, Difference(path, 1, 2)]
    assert (intended.recognise(SHARING, differences) is not None) is covered
    more = [Difference("end.evicted", 4, 6), Difference(path, 1, 2)]
    assert intended.recognise(SHARING, more) is None
    assert intended.recognise(CASE, differences) is None  # nothing is shared
