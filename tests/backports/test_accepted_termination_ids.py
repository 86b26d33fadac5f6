"""Where requests end in speculative decoding, on whichever release is installed."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.ours.accepted_termination_ids import ACCEPTED_TERMINATION_IDS
from megatron_patch.testing.releases import engine_class

from . import log_probs, speculating
from .checks import assert_state_of_record, proof

pytestmark = pytest.mark.usefixtures("device")

PROMPTS = ((5, 6, 7, 8), (9, 10), tuple(range(11, 31)), (3, 1, 4, 1, 5))
LENGTH = 16


@pytest.fixture
def speculative(device: Any) -> None:
    speculating.needs_speculative_tokens()


@functools.cache
def alone(prompts: tuple[tuple[int, ...], ...], length: int) -> tuple[tuple[int, ...], ...]:
    """The tokens of the model alone."""
    requests = [testing.Request(prompt, length) for prompt in prompts]
    return testing.reference_decode(testing.build_model(speculating.spec(2)), requests)


def ending_at(place: int) -> tuple[list[testing.Request], list[tuple[int, ...]]]:
    """Requests whose termination ids are what the model alone has there; and what is right."""
    requests, right = [], []
    for prompt, tokens in zip(PROMPTS, alone(PROMPTS, LENGTH), strict=True):
        last = tokens[place]
        request = testing.Request(prompt, LENGTH)
        requests.append(replace(request, sampling={"termination_id": last}))
        right.append(tokens[: tokens.index(last) + 1])
    return requests, right


def decode(requests: list[testing.Request], scheduling: str | None, **sampling: Any) -> list[Any]:
    """The engine's records of the requests, with drafts that are often right."""
    spec = speculating.spec(2, options=speculating.options_of(scheduling))
    engine = testing.build_engine(spec)
    guess_right(engine, requests)
    decoded = testing.decode(engine, requests, capture_logits=False, sampling=sampling)
    assert engine.context.total_request_count == 0
    return [record[-1] for record in decoded.records]


def guess_right(engine: Any, requests: list[testing.Request]) -> None:
    """Have drafts that are the tokens of the model alone, as those of a trained model would be."""
    controller = engine.controller
    prompts = tuple(request.prompt for request in requests)
    texts = [
        (*prompt, *tokens)
        for prompt, tokens in zip(prompts, alone(prompts, LENGTH + 4), strict=True)
    ]
    original = controller._compute_serial_mtp_and_sample

    def draft(base_position: Any = None) -> None:
        original(*(() if base_position is None else (base_position,)))
        context = engine.context
        rows = slice(context.paused_request_count, context.total_request_count)
        ids = context.request_ids[rows].tolist()
        if base_position is None:
            base_position = context.get_active_sequence_lengths()
        for row, (request_id, base) in enumerate(zip(ids, base_position.tolist(), strict=True)):
            for depth in range(2):
                token = texts[request_id][base + 1 + depth]
                controller._sampled_mtp_tokens_cuda[depth, row] = token

    controller._compute_serial_mtp_and_sample = draft


def test_state(device):
    engine_class()
    assert_state_of_record(ACCEPTED_TERMINATION_IDS)


@proof
@pytest.mark.parametrize("place", [3, 4, 5, 6])
def test_requests_end_at_their_termination_ids(speculative, place):
    """In some request the place is that of the first accepted, second or sampled token."""
    requests, right = ending_at(place)
    for scheduling in speculating.schedulings():
        found = decode(requests, scheduling, return_log_probs=True, top_n_logprobs=2)
        assert [tuple(part.generated_tokens) for part in found] == right
        for part in found:
            assert len(part.generated_log_probs) == len(part.generated_tokens)
            likely = [max(top, key=top.get) for top in part.generated_top_n_logprobs]
            assert likely == [str(token) for token in part.generated_tokens]


def test_each_token_has_its_own_log_prob(speculative):
    requests, right = ending_at(4)
    model = testing.build_model(speculating.spec(2))
    for skip in (False, True):
        found = decode(requests, None, return_log_probs=True, skip_prompt_log_probs=skip)
        for request, tokens, part in zip(requests, right, found, strict=True):
            of_prompt, of_generated = log_probs.of(model, request.prompt, tokens)
            assert part.generated_log_probs == pytest.approx(of_generated, abs=1e-4)
            assert part.prompt_log_probs == pytest.approx([] if skip else of_prompt, abs=1e-4)


def test_without_termination_ids_nothing_changes(speculative, unpatched):
    requests = [testing.Request(prompt, 7) for prompt in PROMPTS]
    sampling = {"return_log_probs": True, "top_n_logprobs": 2}
    without = decode(requests, None, **sampling)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MEGATRON_PATCH", ACCEPTED_TERMINATION_IDS.id)
        megatron_patch.install()
        found = decode(requests, None, **sampling)
        megatron_patch.uninstall()
    for one, other in zip(found, without, strict=True):
        assert one.generated_tokens == other.generated_tokens
        assert one.generated_log_probs == other.generated_log_probs
        assert one.generated_top_n_logprobs == other.generated_top_n_logprobs
