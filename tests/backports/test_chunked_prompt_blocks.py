"""Prompts in chunks while other requests take the KV blocks, on whichever release is installed.

From 0.17 on these tests run upstream's own code.
"""

from __future__ import annotations

from typing import Any

import pytest

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.upstream.chunked_prompt_blocks import CHUNKED_PROMPT_BLOCKS
from megatron_patch.testing.releases import context_class, engine_class, parameters_of

from ..conftest import RELEASE
from ..upstream import support
from .checks import assert_state_of_record, needs, proof
from .serving import has_paused_buffer, serve, spec_of

pytestmark = pytest.mark.usefixtures("device")

PATCHED = RELEASE.release[:2] == (0, 16)
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} has upstream's change, or none")

#: Each takes a second block in its first step, and a third 16 steps later.
GROWING = [testing.Request(tuple(range(k, k + 16)), 30) for k in (3, 40)]
#: Two chunks in steps of 64 tokens, and 7 blocks.
LONG = testing.Request(tuple(i * i % 127 for i in range(100)), 6)


def build(blocks: int, **fields: Any) -> Any:
    needs(has_paused_buffer(), "an engine that does not set blocks aside")
    spec = spec_of(blocks, enable_chunked_prefill=True, **{"max_tokens": 64, **fields})
    return testing.build_engine(spec)


def assert_served(engine: Any, requests: list[testing.Request]) -> None:
    model = testing.build_model(testing.EngineSpec())
    free = support.free_blocks(engine.context)
    found = serve(engine, requests)
    tokens = [one and one.tokens for one in found]
    assert tokens == [*testing.reference_decode(model, requests, tokens)]
    assert support.free_blocks(engine.context) == free


def build_with_cache(policy: str, blocks: int, **fields: Any) -> Any:
    context = context_class()
    needs(hasattr(context, "_compute_prefix_match"), "prefix caching")
    # With upstream's change the look-up may find nothing. What else is wrong has its own patches.
    index_of = parameters_of(context.get_index_of_chunked_prefill_request)
    needs("safe" not in index_of, "prompts that are part of each step until their last chunk")
    from megatron.core.inference.config import PrefixCachingEvictionPolicy

    options = {"prefix_caching_eviction_policy": PrefixCachingEvictionPolicy(policy)}
    return build(blocks, enable_prefix_caching=True, options=options, **fields)


def blocks_left(engine: Any) -> int:
    """How many blocks no request holds: free ones, and cached ones."""
    context = engine.context
    allocator = getattr(context, "kv_block_allocator", None) or context.block_allocator
    return int((allocator.block_ref_counts == 0).sum())


def test_state():
    engine_class()
    assert_state_of_record(CHUNKED_PROMPT_BLOCKS)


@proof
@pytest.mark.parametrize("blocks", [10, 11, 12])
def test_the_next_chunk_has_its_blocks(blocks):
    """The prompt is admitted with the others, whose blocks then are all that are left."""
    assert_served(build(blocks), [*GROWING, LONG])


@proof
@pytest.mark.parametrize("policy", ["ref_zero", "lru"])
@pytest.mark.parametrize("blocks", [12, 40])
def test_with_a_prefix_cache(policy, blocks):
    engine = build_with_cache(policy, blocks)
    # The last one has blocks in common with the one before, which has begun to be prefilled.
    requests = [*GROWING, LONG, testing.Request((*LONG.prompt[:70], 3, 4, 5), 5)]
    model = testing.build_model(testing.EngineSpec())
    alone = [*testing.reference_decode(model, requests)]
    left = blocks_left(engine)
    for _ in range(2):
        found = serve(engine, requests)
        assert [one and one.tokens for one in found] == alone
        assert blocks_left(engine) == left


@proof
def test_later_chunks_skip_what_is_cached():
    fields = {"max_tokens": 64, "max_sequence_length": 256}
    engine = build_with_cache("lru", 60, **fields)
    long = testing.Request(tuple(i * i % 127 for i in range(200)), 6)
    model = testing.build_model(testing.EngineSpec(max_sequence_length=256))
    alone = [*testing.reference_decode(model, [long])]
    computed = []
    for _ in range(2):
        before = engine.context.lifetime_prefill_token_count
        found = serve(engine, [long])
        assert [one and one.tokens for one in found] == alone
        computed.append(engine.context.lifetime_prefill_token_count - before)
    # Four chunks, of which two begin where a block does.
    assert computed[0] == 200
    assert computed[1] <= 200 - 2 * 60


@pytest.mark.parametrize("blocks", [10, 11, 40])
@pytest.mark.parametrize("length", [65, 96, 97, 113])
def test_prompts_of_all_lengths(blocks, length):
    long = testing.Request(tuple(i * 5 % 127 for i in range(length)), 5)
    assert_served(build(blocks), [*GROWING, long, testing.Request((8, 9), 5), LONG])


def test_a_prompt_of_many_chunks():
    spec = {"max_tokens": 64, "max_sequence_length": 256}
    long = testing.Request(tuple(i * 5 % 127 for i in range(230)), 6)
    engine = build(19, **spec)
    requests = [*GROWING, long, testing.Request((8, 9), 5)]
    model = testing.build_model(testing.EngineSpec(max_sequence_length=256))
    found = serve(engine, requests)
    tokens = [one and one.tokens for one in found]
    assert tokens == [*testing.reference_decode(model, requests, tokens)]


def test_as_many_requests_as_a_step_has_tokens():
    """The tokens of these requests leave none for another chunk."""
    many = [testing.Request((index, index + 1), 12) for index in range(62)]
    engine = build(200, max_requests=64)
    assert_served(engine, [*many, LONG, *many[:6]])


@only_patched
@pytest.mark.parametrize("chunked", [False, True])
def test_with_enough_blocks_nothing_changes(unpatched, chunked):
    requests = [*GROWING, LONG, testing.Request((8, 9), 5)] if chunked else GROWING
    spec = testing.EngineSpec(enable_chunked_prefill=chunked)
    without = testing.decode(testing.build_engine(spec), requests)
    megatron_patch.install()
    found = testing.decode(testing.build_engine(spec), requests)
    assert found.tokens == without.tokens
    assert all(a.equal(b) for a, b in zip(found.logits, without.logits, strict=True))


@only_patched
def test_unpatched_a_chunk_that_waits_spoils_the_prompt(unpatched):
    """The stand-in for flash-attn sees that a block is missing; flash-attn reads the last one."""
    engine = build(10)
    with pytest.raises((AssertionError, RuntimeError), match=r"is -1|assert"):
        assert_served(engine, [*GROWING, LONG])
