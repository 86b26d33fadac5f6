"""Log probs of a prompt in chunks, on whichever release is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.ours.prompt_chunk_logprobs import PROMPT_CHUNK_LOGPROBS
from megatron_patch.testing.releases import context_parameters, engine_class, parameters_of

from . import log_probs, speculating
from .checks import assert_state_of_record, needs, proof
from .chunks import parts, spec

pytestmark = pytest.mark.usefixtures("device")

# A step has 64 tokens. Prompts in two chunks and in three; one whose last chunk has few tokens, as
# one goes to the request beside it in each step; and more after it, whose chunks begin elsewhere.
REQUESTS = (
    testing.Request((5, 6, 7), 30),
    testing.Request(tuple(i * i % 127 for i in range(100)), 6, arrival_step=2),
    testing.Request((8, 9), 4, arrival_step=3),
    testing.Request(tuple(3 * i * i % 127 for i in range(127)), 3, arrival_step=9),
    testing.Request(tuple(5 * i * i % 127 for i in range(150)), 4, arrival_step=12),
    testing.Request(tuple(7 * i * i % 127 for i in range(90)), 3, arrival_step=13),
)
#: A lone prompt, whose first chunk has as many tokens as a step takes.
ALONE = testing.Request(tuple(i * i % 127 for i in range(100)), 3)


def check(model: Any, requests: Sequence[testing.Request], found: list[Any]) -> None:
    for request, part in zip(requests, found, strict=True):
        assert len(part.generated_tokens) == request.num_tokens
        right = [*map(list, log_probs.of(model, request.prompt, part.generated_tokens))]
        # Where the one list ends and the other begins is the concern of `first-token-logprobs`.
        of_all = [*part.prompt_log_probs, *part.generated_log_probs]
        assert of_all == pytest.approx([*right[0], *right[1]], abs=1e-4)


@pytest.fixture
def chunked(device: Any) -> None:
    known = {*parameters_of(engine_class()), *context_parameters()}
    needs("enable_chunked_prefill" in known, "prompts in chunks")


@pytest.fixture
def skipping(chunked: None) -> None:
    from megatron.core.inference.sampling_params import SamplingParams

    skips = "skip_prompt_log_probs" in parameters_of(SamplingParams)
    needs(skips, "log probs without those of the prompt")


@pytest.fixture
def speculative(chunked: None) -> testing.EngineSpec:
    speculating.needs_speculative_tokens()
    return spec(num_speculative_tokens=2)


@pytest.fixture
def asynchronous(chunked: None) -> dict[str, Any]:
    needs("async" in speculating.schedulings(), "asynchronous scheduling")
    return speculating.options_of("async")


def test_state(device):
    engine_class()
    assert_state_of_record(PROMPT_CHUNK_LOGPROBS)


@proof
@pytest.mark.parametrize("requests", [REQUESTS, [ALONE]], ids=["beside others", "alone"])
def test_each_token_of_a_prompt_in_chunks_has_its_own_log_prob(chunked, requests):
    check(testing.build_model(spec()), requests, parts(testing.build_engine(spec()), requests))


@proof
def test_so_it_has_in_speculative_decoding(speculative):
    """Other requests have speculative tokens in the same steps as the chunks."""
    model, engine = testing.build_model(speculative), testing.build_engine(speculative)
    for request, part in zip(REQUESTS, parts(engine, REQUESTS), strict=True):
        of_prompt, _ = log_probs.of(model, request.prompt, ())
        assert part.prompt_log_probs == pytest.approx(of_prompt, abs=1e-4)


@proof
def test_so_it_has_with_asynchronous_scheduling(asynchronous):
    engine = testing.build_engine(spec(options=asynchronous))
    check(testing.build_model(spec()), REQUESTS, parts(engine, REQUESTS))


@proof
def test_so_it_has_with_both(asynchronous, speculative):
    engine = testing.build_engine(spec(num_speculative_tokens=2, options=asynchronous))
    (part,) = parts(engine, [ALONE])
    of_prompt, _ = log_probs.of(testing.build_model(speculative), ALONE.prompt, ())
    assert part.prompt_log_probs == pytest.approx(of_prompt, abs=1e-4)


@proof
def test_there_are_most_likely_ones_for_each_log_prob(skipping):
    """On 0.16, another patch sees to it that there is one log prob for each token."""
    sampling = {"skip_prompt_log_probs": True, "top_n_logprobs": 2}
    for part in parts(testing.build_engine(spec()), REQUESTS, **sampling):
        assert len(part.generated_top_n_logprobs) == len(part.generated_log_probs)


@pytest.mark.parametrize("only_last", [False, True])
def test_each_generated_token_has_its_own_most_likely_ones(skipping, only_last):
    engine = testing.build_engine(spec(materialize_only_last_token_logits=only_last))
    found = parts(engine, REQUESTS, skip_prompt_log_probs=True, top_n_logprobs=2)
    for request, part in zip(REQUESTS, found, strict=True):
        assert part.prompt_top_n_logprobs == []
        # Sampling is greedy, and the tokenizer's text of a token is its number.
        likely = [max(top, key=top.get) for top in part.generated_top_n_logprobs]
        assert likely == [str(token) for token in part.generated_tokens]
        assert len(likely) == len(part.generated_log_probs) == request.num_tokens


def test_each_token_of_the_prompt_has_its_own_most_likely_ones(skipping):
    found = parts(testing.build_engine(spec()), REQUESTS, top_n_logprobs=3)
    for request, part in zip(REQUESTS, found, strict=True):
        assert len(part.prompt_top_n_logprobs) == len(request.prompt) - 1
        assert len(part.generated_top_n_logprobs) == request.num_tokens
        for own, likely in zip(part.prompt_log_probs, part.prompt_top_n_logprobs, strict=True):
            assert own <= max(likely.values()) + 1e-4


def test_unpatched_the_last_log_prob_of_a_chunk_is_of_another_token(chunked, unpatched):
    (part,) = parts(testing.build_engine(spec()), [ALONE])
    right, _ = log_probs.of(testing.build_model(spec()), ALONE.prompt, ())
    found = part.prompt_log_probs[: len(right)]
    differences = [abs(one - other) for one, other in zip(found, right, strict=True)]
    assert [place for place, off in enumerate(differences) if off > 1e-4] == [63]


@pytest.mark.parametrize("skip", [False, True])
def test_nothing_changes_for_prompts_in_one_chunk(skipping, unpatched, skip):
    requests = [testing.Request(r.prompt[:20], 4, r.arrival_step // 3) for r in REQUESTS]
    sampling = {"top_n_logprobs": 2, "skip_prompt_log_probs": skip}
    without = parts(testing.build_engine(spec()), requests, **sampling)
    megatron_patch.install()
    found = parts(testing.build_engine(spec()), requests, **sampling)
    for one, other in zip(found, without, strict=True):
        assert one.generated_tokens == other.generated_tokens
        assert one.prompt_log_probs == other.prompt_log_probs
        assert one.generated_log_probs == other.generated_log_probs
        assert one.prompt_top_n_logprobs == other.prompt_top_n_logprobs
        assert one.generated_top_n_logprobs == other.generated_top_n_logprobs


def test_a_chunk_from_before_the_patch_is_left_alone(chunked, unpatched):
    """Nothing notes which token follows such a chunk."""

    def on_step(engine: Any, step: int) -> None:
        if step == 1:
            megatron_patch.install()

    engine, sampling = testing.build_engine(spec()), {"return_log_probs": True}
    decoded = testing.decode(
        engine, [ALONE], on_step=on_step, capture_logits=False, sampling=sampling
    )
    assert len(decoded.tokens[0]) == 3
