"""What sampling has to draw from, and how the matrix checks that it did."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import megatron_patch
from tools.differential import draws, judging, oracles, serving
from tools.differential.configuration import Configuration, Plan
from tools.differential.drawing import MEANINGLESS, ODD_SAMPLINGS, SAMPLINGS
from tools.differential.selections import Selections

from .conftest import Planted

LOGITS = torch.tensor([2.0, 1.0, 3.0, 0.0, -1.0]).log_softmax(-1)


def kept(sampling: draws.Sampling) -> set[int]:
    return {*draws.probabilities(LOGITS, sampling).nonzero().flatten().tolist()}


@pytest.mark.parametrize(
    ("sampling", "tokens"),
    [
        ((1.0, 0, 0.0), {0, 1, 2, 3, 4}),
        ((1.0, -1, 1.0), {0, 1, 2, 3, 4}),
        ((1.0, 99, 0.0), {0, 1, 2, 3, 4}),
        ((1.0, 1, 0.9), {2}),
        ((0.0, 4, 0.9), {2}),
        ((1.0, 3, 0.0), {0, 1, 2}),
        ((1.0, 0, 0.6), {2}),  # it has 0.64
        ((1.0, 0, 0.7), {0, 2}),
        # Of two tokens the first has 0.73, where it has 0.64 of all.
        ((1.0, 2, 0.7), {2}),
        ((1.0, 2, 0.75), {0, 2}),
        ((1e-40, 0, 0.0), {2}),
    ],
)
def test_filters_are_applied_one_after_the_other(sampling, tokens):
    assert kept(sampling) == tokens
    found = draws.probabilities(LOGITS, sampling)
    assert float(found.sum()) == pytest.approx(1)
    # Among those that are kept, the logits decide.
    if len(tokens) > 1 and sampling[0] == 1.0:
        first, second = (float(found[token] / LOGITS[token].exp()) for token in sorted(tokens)[:2])
        assert first == pytest.approx(second, rel=1e-5)
    for token in range(5):
        assert draws.allows(LOGITS, sampling, token, 1e-6) is (token in tokens)


def test_what_is_nearly_kept_may_be_drawn():
    assert not draws.allows(LOGITS, (1.0, 1, 0.0), 0, 0.9)
    assert draws.allows(LOGITS, (1.0, 1, 0.0), 0, 1.1)
    assert draws.allows(LOGITS, (1.0, 0, 0.643), 0, 1e-3)


def noted(rows: torch.Tensor, number: int | None = 1) -> list[draws.Draw]:
    found: list[draws.Draw] = []
    with draws.noted(found, lambda: number):
        torch.multinomial(rows, 1, generator=torch.Generator().manual_seed(0))
    return found


def test_a_token_is_drawn_with_its_probabilities_or_not():
    right = draws.probabilities(LOGITS, (1.0, 3, 0.0))
    (draw,) = found = noted(torch.stack([right, LOGITS.exp()]))
    assert draw.passes == 1
    assert draws.drew(found, right, draw.tokens[0])
    assert not draws.drew(found, right, (draw.tokens[0] + 1) % 5)
    assert not draws.drew(found, draws.probabilities(LOGITS, (1.0, 2, 0.0)), draw.tokens[0])
    assert not draws.drew([], right, draw.tokens[0])
    assert noted(LOGITS.exp()[None], None) == []


def test_random_numbers_are_used_once():
    found = noted(LOGITS.exp()[None])
    assert not draws.repeated(found)
    assert draws.repeated([*found, *noted(LOGITS.exp()[None])])


def of(*samplings: draws.Sampling) -> Configuration:
    """Requests side by side; before 0.16 all are sampled as the first one."""
    return Configuration(
        requests=tuple(
            Plan(stem=index % 8, length=9, num_tokens=6, sampling=sampling)
            for index, sampling in enumerate(samplings)
        )
    )


def run(*samplings: draws.Sampling) -> tuple[Configuration, oracles.Case]:
    configuration = of(*samplings)
    return configuration, oracles.Case(configuration, Planted().runner()(configuration, "none"))


@pytest.mark.parametrize("sampling", sorted({*SAMPLINGS}))
def test_a_release_draws_as_it_is_defined(device, sampling):
    configuration, case = run(sampling, sampling)
    assert oracles.complaints(configuration, case.observation) == []
    assert len(case.observation.draws) == (0 if configuration.requests[0].greedy else 6)


def test_with_patches_what_is_odd_is_drawn_as_it_is_defined_and_nothing_changes_another(device):
    """Side by side, and among what means nothing, where a request has parameters of its own."""
    own = serving.OWN_PARAMETERS
    groups = [(*ODD_SAMPLINGS, *MEANINGLESS)] if own else [(item,) for item in ODD_SAMPLINGS]
    run_with = judging.runner(Selections())
    for samplings in groups:
        configuration = replace(of(*samplings), max_requests=16, max_tokens=128)
        observation = run_with(configuration, "correctness")
        assert oracles.complaints(configuration, observation) == []
        parts = [request["parts"][0] for request in observation.record["requests"]]
        served = [len(part["generated_tokens"]) for part in parts]
        assert served == [6] * len(ODD_SAMPLINGS) + [0] * len(MEANINGLESS) if own else [6]
    megatron_patch.uninstall()


@pytest.mark.parametrize("other", [(0.7, 0, 0.0), (1.0, 3, 0.0), (1.0, 0, 0.5)])
def test_tokens_that_were_drawn_with_other_parameters_are_found(device, other):
    configuration, case = run((1.0, 0, 0.0), (1.0, 0, 0.0))
    assert oracles.complaints(configuration, case.observation) == []
    plans = tuple(replace(plan, sampling=other) for plan in configuration.requests)
    wrong = replace(configuration, requests=plans)
    found = [item.kind for item in oracles.complaints(wrong, case.observation)]
    assert set(found) <= {"draw", "token"}
    assert len(found) == 2


def test_a_token_that_was_not_the_drawn_one_is_found(device):
    configuration, case = run((1.0, 0, 0.0))
    draw = case.observation.draws[3]
    case.observation.draws[3] = replace(draw, tokens=[(token + 1) % 64 for token in draw.tokens])
    (complaint,) = oracles.complaints(configuration, case.observation)
    assert (complaint.kind, complaint.facts["place"]) == ("draw", 3)
