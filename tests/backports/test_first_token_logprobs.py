"""Where the log prob of the first generated token is filed, on whichever release is installed.

From 0.16 on these tests run upstream's own code.
"""

from __future__ import annotations

from typing import Any

import pytest

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.upstream.first_token_logprobs import FIRST_TOKEN_LOGPROBS
from megatron_patch.testing.releases import context_parameters, engine_class, parameters_of

from . import log_probs
from .checks import assert_state_of_record, needs, proof
from .chunks import parts, spec

pytestmark = pytest.mark.usefixtures("device")

WHOLE = testing.EngineSpec(materialize_only_last_token_logits=False)

LONG = tuple(i * i % 127 for i in range(150))

# A prompt of one token, of two, of more; one that comes later; and one of many blocks.
REQUESTS = (
    testing.Request((5,), 4),
    testing.Request((6, 7), 2),
    testing.Request((8, 9, 10, 11), 6),
    testing.Request((12, 13, 14), 5, arrival_step=2),
    testing.Request(LONG[:40], 3, arrival_step=3),
)


def check(model: Any, requests: Any, found: list[Any]) -> None:
    for request, part in zip(requests, found, strict=True):
        of_prompt, of_generated = log_probs.of(model, request.prompt, part.generated_tokens)
        assert len(of_generated) == request.num_tokens
        assert part.prompt_log_probs == pytest.approx(of_prompt, abs=1e-4)
        assert part.generated_log_probs == pytest.approx(of_generated, abs=1e-4)


def test_state(device):
    engine_class()
    assert_state_of_record(FIRST_TOKEN_LOGPROBS)


@proof
def test_each_generated_token_has_its_log_prob_and_each_of_the_prompt():
    model = testing.build_model(WHOLE)
    check(model, REQUESTS, parts(testing.build_engine(WHOLE), REQUESTS))


def test_so_has_a_single_generated_token():
    requests = [testing.Request((6, 7), 1), testing.Request(LONG[:30], 1, arrival_step=1)]
    check(testing.build_model(WHOLE), requests, parts(testing.build_engine(WHOLE), requests))


def test_so_they_have_after_a_prompt_in_chunks():
    """The last chunk has 64 tokens, a single one (two where a release avoids that), and a few."""
    known = {*parameters_of(engine_class()), *context_parameters()}
    needs("enable_chunked_prefill" in known, "prompts in chunks")
    model, engine = testing.build_model(spec()), testing.build_engine(spec())
    for length in (128, 129, 150):
        requests = [testing.Request(LONG[:length], 5), testing.Request((5, 6), 2, arrival_step=1)]
        check(model, requests, parts(engine, requests))


def test_with_the_logits_of_last_tokens_there_are_those_of_generated_ones():
    from megatron.core.inference.sampling_params import SamplingParams

    skips = "skip_prompt_log_probs" in parameters_of(SamplingParams)
    needs(skips, "log probs without those of the prompt")
    only_last = testing.EngineSpec()
    model = testing.build_model(only_last)
    found = parts(testing.build_engine(only_last), REQUESTS, skip_prompt_log_probs=True)
    for request, part in zip(REQUESTS, found, strict=True):
        _, right = log_probs.of(model, request.prompt, part.generated_tokens)
        assert part.prompt_log_probs == []
        assert part.generated_log_probs == pytest.approx(right, abs=1e-4)


def test_without_log_probs_there_are_none():
    for part in parts(testing.build_engine(WHOLE), REQUESTS, return_log_probs=False):
        assert part.prompt_log_probs is None
        assert part.generated_log_probs is None


def test_nothing_else_changes(unpatched):
    without = parts(testing.build_engine(WHOLE), REQUESTS)
    megatron_patch.install()
    for one, other in zip(parts(testing.build_engine(WHOLE), REQUESTS), without, strict=True):
        assert one.generated_tokens == other.generated_tokens
        assert [*one.prompt_log_probs, *one.generated_log_probs] == [
            *other.prompt_log_probs,
            *other.generated_log_probs,
        ]
