"""A prefix cache that is full, on whichever release is installed."""

from __future__ import annotations

import importlib.metadata
import random
from itertools import dropwhile

import pytest
import torch
from packaging.version import Version

from megatron_patch import State, testing
from megatron_patch.backports.lru_prefix_cache import LRU_PREFIX_CACHE

from ..conftest import expected_state
from ..upstream import support
from .checks import state_of

VERSION = Version(importlib.metadata.version("megatron-core"))
SHARES = VERSION >= Version("0.17")
ORDERED = VERSION >= Version("0.19")
NO_ACTIVE = "active_request_count == 0"

pytestmark = pytest.mark.usefixtures("device")
only_sharing = pytest.mark.skipif(not SHARES, reason=f"{VERSION} has no prefix caching")
only_unordered = pytest.mark.skipif(
    not SHARES or ORDERED, reason=f"{VERSION} has no prefix caching, or evicts in the right order"
)
policies = pytest.mark.parametrize("policy", ["REF_ZERO", "LRU"])

SIZE = 4  # tokens in a block


def spec(blocks: int, policy: str = "LRU", **fields) -> testing.EngineSpec:  # type: ignore[no-untyped-def]
    """A very small model, and a KV cache of so many blocks."""
    from megatron.core.inference.config import PrefixCachingEvictionPolicy

    fields.setdefault("max_requests", 8)
    options = {"prefix_caching_eviction_policy": PrefixCachingEvictionPolicy[policy]}
    return testing.EngineSpec(
        num_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        max_sequence_length=32,
        block_size_tokens=SIZE,
        buffer_size_gb=(blocks + 1.5) * 2 * SIZE * 32 * 4 / 1024**3,
        enable_prefix_caching=True,
        options=options,
        **fields,
    )


def tokens(start: int, count: int) -> tuple[int, ...]:
    """A prompt that shares nothing with those of other starts."""
    return tuple((start + 7 * i) % 128 for i in range(count))


def decode(engine, *requests: tuple[tuple[int, ...], int]) -> testing.Decoded:  # type: ignore[no-untyped-def]
    """Decode requests, given as prompt and number of tokens; no table has a block twice."""

    def check(engine, step) -> None:  # type: ignore[no-untyped-def]
        for row in engine.context.request_to_kv_block_ids.tolist():
            blocks = [block for block in row if block != -1]
            assert len(blocks) == len({*blocks})

    made = [testing.Request(*request) for request in requests]
    return testing.decode(engine, made, on_step=check, capture_logits=False)


@pytest.fixture(scope="module")
def model(device):  # type: ignore[no-untyped-def]
    return testing.build_model(spec(4))


def expected(model, *requests: tuple[tuple[int, ...], int]):  # type: ignore[no-untyped-def]
    """What the model alone decodes, without any cache."""
    return testing.reference_decode(model, [testing.Request(*request) for request in requests])


def hashes(prompt: tuple[int, ...]) -> list[int]:
    """The hashes of the prompt's full blocks."""
    made = support.request(0, prompt, block_size_tokens=SIZE, enable_prefix_caching=True)
    return list(made.precomputed_block_hashes)


def cached(engine, prompt: tuple[int, ...]) -> int:  # type: ignore[no-untyped-def]
    """How many blocks of the prompt are cached; none without those before it."""
    known = engine.context.kv_block_allocator.kv_hash_to_block_id
    found = [block_hash in known for block_hash in hashes(prompt)]
    assert not any(dropwhile(bool, found))
    return sum(found)


def test_state():
    testing.context_class()
    assert state_of(LRU_PREFIX_CACHE) is expected_state(
        State.APPLIED if SHARES else State.NOT_APPLICABLE
    )


# Engines in the states that upset them. All have four blocks.


def decode_when_all_other_blocks_are_cached() -> testing.Decoded:
    engine = testing.build_engine(spec(4))
    decode(engine, (tokens(1, 3 * SIZE), 1))
    return decode(engine, (tokens(2, SIZE), 3))  # it needs a second block


@only_sharing
def test_a_request_gets_the_block_of_one_that_has_ended(model):
    decoded = decode_when_all_other_blocks_are_cached()
    assert decoded.tokens == expected(model, (tokens(2, SIZE), 3))


@only_sharing
def test_unpatched_a_request_that_needs_a_cached_block_ends_the_engine(unpatched):
    with pytest.raises(AssertionError, match=NO_ACTIVE):
        decode_when_all_other_blocks_are_cached()


def decode_what_is_cached_in_part() -> tuple[int, testing.Decoded]:
    engine, prompt = testing.build_engine(spec(4)), tokens(1, 3 * SIZE)
    decode(engine, (prompt, 1))
    decode(engine, (tokens(2, 2 * SIZE), 1))  # there is one free block for it
    return cached(engine, prompt), decode(engine, (prompt, 2))


@only_sharing
def test_the_last_blocks_of_a_prompt_are_evicted_first(model):
    left, decoded = decode_what_is_cached_in_part()
    assert left == 2
    assert decoded.tokens == expected(model, (tokens(1, 3 * SIZE), 2))


@only_unordered
def test_unpatched_a_prompt_without_its_first_block_ends_the_engine(unpatched, monkeypatch):
    monkeypatch.setitem(globals(), "cached", lambda *_: None)
    with pytest.raises(KeyError):
        decode_what_is_cached_in_part()


def decode_with_what_would_be_evicted() -> testing.Decoded:
    engine, prompt = testing.build_engine(spec(4)), tokens(1, 4 * SIZE - 1)
    decode(engine, (prompt[: 2 * SIZE], 1))
    decode(engine, (tokens(2, 2 * SIZE), 1))
    return decode(engine, (prompt, 1))  # the oldest blocks are its own


@only_sharing
def test_blocks_that_a_request_shares_are_not_evicted_for_it(model):
    assert decode_with_what_would_be_evicted().tokens == expected(
        model, (tokens(1, 4 * SIZE - 1), 1)
    )


@only_unordered
def test_unpatched_a_request_has_a_block_twice_and_gets_wrong_tokens(unpatched, model, monkeypatch):
    monkeypatch.setattr(
        testing, "decode", lambda *a, on_step, _decode=testing.decode, **kw: _decode(*a, **kw)
    )
    decoded = decode_with_what_would_be_evicted()
    assert decoded.tokens != expected(model, (tokens(1, 4 * SIZE - 1), 1))


def add(context, request_id: int, prompt: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    fields = {"block_size_tokens": SIZE, "enable_prefix_caching": True}
    support.add(context, request_id, prompt, **fields)


def end_step(context, *active: int) -> None:  # type: ignore[no-untyped-def]
    """End a step: requests with a 0 have ended, the others go on."""
    mask = torch.tensor(active, dtype=torch.int32, device=context.request_ids.device)
    context.update_requests(mask, mask.long())


def is_let_in(context) -> bool:  # type: ignore[no-untyped-def]
    """Whether a request is, that shares two of three cached blocks and needs two more."""
    prompt = tokens(1, 4 * SIZE)
    add(context, 0, prompt[: 2 * SIZE])
    add(context, 1, tokens(2, SIZE))
    end_step(context, 0, 0)
    add(context, 2, tokens(3, SIZE))  # it stays
    made = support.request(3, prompt, block_size_tokens=SIZE, enable_prefix_caching=True)
    return bool(context.check_availability(made)[2])


@only_sharing
def test_a_request_that_needs_what_it_shares_waits():
    assert not is_let_in(testing.build_context(spec(4)))


@only_unordered
def test_unpatched_a_request_that_needs_what_it_shares_does_not_wait(unpatched):
    assert is_let_in(testing.build_context(spec(4)))


SHARED = tokens(1, 2 * SIZE)
#: After the first step of the third one, which has no block of its own, each needs another one.
SHARING = ((SHARED + tokens(5, 3), 4), (tokens(2, 3), 4), (SHARED, 4))


def fill_all_blocks(context) -> list[int]:  # type: ignore[no-untyped-def]
    """Two steps, at the end of which all blocks are full; the requests that are left."""
    for index, (prompt, _) in enumerate(SHARING):
        add(context, index, prompt)
        if index:
            end_step(context, *[1] * (index + 1))
    return context.request_ids[: context.total_request_count].tolist()


@only_sharing
@policies
def test_blocks_that_are_shared_are_not_counted_on_when_requests_are_evicted(policy):
    assert fill_all_blocks(testing.build_context(spec(4, policy))) == [0]


@only_sharing
@policies
def test_unpatched_no_block_is_released_by_evicting_what_only_shares(unpatched, policy):
    with pytest.raises(AssertionError, match=NO_ACTIVE):
        fill_all_blocks(testing.build_context(spec(4, policy)))


@only_sharing
@policies
def test_requests_that_share_blocks_and_do_not_fit_together_all_end(model, policy):
    engine = testing.build_engine(spec(4, policy))
    assert decode(engine, *SHARING).tokens == expected(model, *SHARING)
    assert engine.evicted_request_count == 2


def resumed(policy: str) -> tuple[testing.Decoded, list[int]]:
    """Suspend and resume when a request has two tokens; the hashes it comes back with."""
    engine = testing.build_engine(spec(16, policy, kv_cache_management_mode="recompute"))

    def on_step(engine, step) -> None:  # type: ignore[no-untyped-def]
        if step == 2:
            testing.suspend(engine)
            testing.resume(engine)

    request = testing.Request(tokens(1, 2 * SIZE - 1), 4)
    decoded = testing.decode(engine, [request], on_step=on_step, capture_logits=False)
    _, again = decoded.records[0].requests
    assert len(again.prompt_tokens) == 2 * SIZE + 1
    return decoded, list(again.precomputed_block_hashes)


@only_sharing
@policies
def test_a_request_comes_back_with_the_hashes_of_all_its_blocks(model, policy):
    decoded, found = resumed(policy)
    (generated,) = expected(model, (tokens(1, 2 * SIZE - 1), 4))
    assert decoded.tokens == (generated,)
    assert found == hashes(tokens(1, 2 * SIZE - 1) + generated[:2])
    assert len(found) == 2


@only_sharing
@policies
def test_unpatched_a_request_comes_back_without_hashes(unpatched, policy):
    assert resumed(policy)[1] == []


# All together.


@only_sharing
@pytest.mark.parametrize(("blocks", "chunked", "rounds"), [(10, False, 16), (18, True, 4)])
def test_a_thousand_requests_get_the_tokens_of_the_model_alone(model, blocks, chunked, rounds):
    """50 at a time, of few prompts with common prefixes. Any one of them fits, not all together."""
    engine = testing.build_engine(spec(blocks, enable_chunked_prefill=chunked))
    context, rng = engine.context, random.Random(0)
    stems = [tokens(rng.randrange(128), rng.choice((4, 8, 12, 17))) for _ in range(8)]
    prompts = [s[: rng.randint(0, len(s))] + tokens(i, 1 + i % 6) for i, s in enumerate(stems * 4)]
    prompts += stems
    most = expected(model, *((prompt, 4) for prompt in prompts))
    for _ in range(rounds):
        chosen = [(rng.randrange(len(prompts)), rng.randint(1, 4)) for _ in range(50)]
        decoded = decode(engine, *((prompts[index], count) for index, count in chosen))
        assert decoded.tokens == tuple(most[index][:count] for index, count in chosen)
        allocator = context.kv_block_allocator
        assert not allocator.block_ref_counts.any()
        evictable = int(allocator.get_evictable_block_count())
        assert support.free_blocks(context) + evictable == blocks
        assert all(cached(engine, prompt) <= len(prompt) // SIZE for prompt in prompts)
    assert engine.evicted_request_count > 0
