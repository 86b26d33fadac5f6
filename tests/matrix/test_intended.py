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
        ("requests[1].merged.generated_log_probs", [-1.0], [-1.0, -2.0], False),
        ("requests[1].merged.generated_log_probs", [-1.0, -2.0, -3.0], [-1.0], False),
        ("requests[1].merged.generated_log_probs[0]", -1.0, -2.0, False),
    ],
)
def test_log_probs_that_nobody_asked_for_may_be_fewer(device, path, left, right, covered):
    found = intended.recognise(CASE, [Difference(path, left, right)])
    assert (found is not None) is covered
    both = [
        Difference(path, left, right),
        Difference("requests[1].merged.generated_text", "a", "b"),
    ]
    assert intended.recognise(CASE, both) is None
