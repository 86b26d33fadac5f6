"""Log probs of prompts that begin with cached blocks, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.ours.cached_prompt_logprobs import CACHED_PROMPT_LOGPROBS
from megatron_patch.testing.releases import context_parameters, inference_config_class

from . import log_probs
from .checks import assert_state_of_record, needs, proof

pytestmark = pytest.mark.usefixtures("device")

PROMPT = tuple(i * i % 127 for i in range(48))
WANTED = {"return_log_probs": True}
GENERATED = {"return_log_probs": True, "skip_prompt_log_probs": True}

# Blocks have 16 tokens. Cases: the second of two equal prompts, while the first is there and after;
# three full blocks; a prompt that begins alike; one that is the beginning; a whole block only; and
# requests that want no log probs, or those of generated tokens alone, in between.
CASES: dict[str, list[testing.Request]] = {
    "at once": [testing.Request(PROMPT[:30], 4), testing.Request(PROMPT[:30], 4)],
    "beside it": [
        testing.Request(PROMPT[:30], 9),
        testing.Request(PROMPT[:30], 4, arrival_step=3),
        testing.Request(PROMPT[:30], 4, arrival_step=4),
    ],
    "after it": [testing.Request(PROMPT[:30], 2), testing.Request(PROMPT[:30], 4, arrival_step=6)],
    "full blocks": [testing.Request(PROMPT, 9), testing.Request(PROMPT, 4, arrival_step=2)],
    "longer": [
        testing.Request(PROMPT[:32], 9),
        testing.Request((*PROMPT, 7, 8), 4, arrival_step=2),
    ],
    "shorter": [testing.Request(PROMPT, 9), testing.Request(PROMPT[:17], 4, arrival_step=2)],
    "one block": [testing.Request(PROMPT[:16], 9), testing.Request(PROMPT[:16], 4, arrival_step=2)],
    "other wishes": [
        testing.Request(PROMPT[:40], 12, sampling=GENERATED),
        testing.Request(PROMPT[:40], 4, arrival_step=2),
        testing.Request(PROMPT[:40], 4, arrival_step=3, sampling=GENERATED),
        testing.Request(PROMPT[:40], 3, arrival_step=4, sampling={"return_log_probs": False}),
    ],
}


@pytest.fixture(params=["REF_ZERO", "LRU"])
def policy(device: Any, request: pytest.FixtureRequest) -> Any:
    needs(inference_config_class() is not None, "prefix caching")
    needs("prefix_caching_eviction_policy" in context_parameters(), "a policy of prefix caching")
    from megatron.core.inference.config import PrefixCachingEvictionPolicy

    return PrefixCachingEvictionPolicy[request.param]


def spec(policy: Any, **fields: Any) -> testing.EngineSpec:
    return testing.EngineSpec(
        **{
            "materialize_only_last_token_logits": False,
            "enable_prefix_caching": True,
            "options": {"prefix_caching_eviction_policy": policy},
            **fields,
        }
    )


def decode(
    engine: Any, requests: list[testing.Request], rows: list[int] | None = None, **sampling: Any
) -> list[Any]:
    def on_step(engine: Any, step: int) -> None:
        if rows is not None:
            rows.append(engine.context.lifetime_prefill_token_count)

    decoded = testing.decode(
        engine, requests, on_step=on_step, capture_logits=False, sampling={**WANTED, **sampling}
    )
    assert engine.context.total_request_count == 0
    return [record[-1] for record in decoded.records]


def check(model: Any, requests: list[testing.Request], found: list[Any]) -> None:
    for request, part in zip(requests, found, strict=True):
        assert len(part.generated_tokens) == request.num_tokens
        of_prompt, of_generated = log_probs.of(model, request.prompt, part.generated_tokens)
        wishes = {**WANTED, **request.sampling}
        if not wishes["return_log_probs"]:
            continue
        assert part.generated_log_probs == pytest.approx(of_generated, abs=1e-4)
        if not wishes.get("skip_prompt_log_probs"):
            assert part.prompt_log_probs == pytest.approx(of_prompt, abs=1e-4)


def test_state(device):
    testing.context_class()
    assert_state_of_record(CACHED_PROMPT_LOGPROBS)


@proof
def test_each_token_has_its_log_prob(policy):
    """The engine is used twice: while it is idle it may keep the cache."""
    model, engine = testing.build_model(spec(policy)), testing.build_engine(spec(policy))
    for requests in CASES.values():
        check(model, requests, decode(engine, requests))


@proof
def test_each_token_has_its_most_likely_ones(policy):
    requests = CASES["beside it"]
    engine = testing.build_engine(spec(policy))
    for request, part in zip(requests, decode(engine, requests, top_n_logprobs=3), strict=True):
        assert len(part.prompt_top_n_logprobs) == len(request.prompt) - 1
        assert len(part.generated_top_n_logprobs) == request.num_tokens
        for own, likely in zip(part.prompt_log_probs, part.prompt_top_n_logprobs, strict=True):
            assert own <= max(likely.values()) + 1e-4


def test_a_scored_prompt_has_its_log_probs(policy):
    """A request for no tokens gets the log probs of its prompt."""
    requests = [testing.Request(PROMPT, 6), testing.Request(PROMPT, 0, arrival_step=2)]
    _, part = decode(testing.build_engine(spec(policy)), requests)
    of_prompt, _ = log_probs.of(testing.build_model(spec(policy)), PROMPT, ())
    assert part.prompt_log_probs == pytest.approx(of_prompt, abs=1e-4)
    assert part.generated_log_probs == []


@pytest.mark.parametrize("length", [100, 129])
def test_so_it_has_with_prompts_in_chunks(policy, length):
    chunked = spec(policy, enable_chunked_prefill=True, max_sequence_length=256)
    prompt = tuple(i * i % 127 for i in range(length))
    requests = [testing.Request(prompt, 12), testing.Request(prompt, 4, arrival_step=5)]
    check(testing.build_model(chunked), requests, decode(testing.build_engine(chunked), requests))


def test_blocks_are_shared_and_given_back(policy):
    engine = testing.build_engine(spec(policy))
    free = engine.context.kv_block_allocator.total_avail
    held = []

    def on_step(engine: Any, step: int) -> None:
        context = engine.context
        held.append(context.kv_block_allocator.get_active_used())

    requests = [testing.Request(PROMPT, 9), testing.Request(PROMPT, 4, arrival_step=2)]
    testing.decode(engine, requests, on_step=on_step, capture_logits=False, sampling=WANTED)
    assert max(held) <= 4 + 1  # three of the prompt for both, and one for what each generates
    assert not engine.context.total_request_count
    allocator = engine.context.kv_block_allocator
    cached = int(allocator.get_evictable_block_count())
    assert allocator.total_avail + cached == free


@pytest.mark.parametrize("sampling", [GENERATED, {"return_log_probs": False}], ids=str)
def test_who_wants_none_of_the_prompt_skips_what_is_cached(policy, unpatched, sampling):
    requests = CASES["beside it"]
    counts: list[list[int]] = [[], []]
    without = decode(testing.build_engine(spec(policy)), requests, counts[0], **sampling)
    megatron_patch.install()
    found = decode(testing.build_engine(spec(policy)), requests, counts[1], **sampling)
    assert counts[0] == counts[1]
    assert counts[0][-1] < sum(len(request.prompt) for request in requests)
    for one, other in zip(found, without, strict=True):
        assert one.generated_tokens == other.generated_tokens
        assert one.generated_log_probs == other.generated_log_probs


def test_unpatched_the_second_one_has_none_of_what_it_generates(policy, unpatched):
    _, part = decode(testing.build_engine(spec(policy)), CASES["at once"])
    assert (len(part.generated_tokens), part.generated_log_probs) == (4, [])
