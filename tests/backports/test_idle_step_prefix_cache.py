"""The prefix cache over idle steps, on whichever release is installed.

From 0.19 on these tests run upstream's own code.
"""

from __future__ import annotations

from typing import Any

import pytest

from megatron_patch import testing
from megatron_patch.backports.upstream.idle_step_prefix_cache import IDLE_STEP_PREFIX_CACHE
from megatron_patch.testing.releases import context_class, engine_class, parameters_of

from .checks import assert_state_of_record, needs, proof

pytestmark = pytest.mark.usefixtures("device")

#: Three blocks and four tokens more.
LONG = testing.Request(tuple(range(1, 29)), 6)
OTHER = testing.Request(tuple(range(60, 88)), 6)


def build(policy: str = "lru", **fields: Any) -> Any:
    needs(hasattr(context_class(), "_compute_prefix_match"), "prefix caching")
    spec = testing.EngineSpec(
        enable_prefix_caching=True,
        block_size_tokens=8,
        max_requests=16,
        num_cuda_graphs=2,
        options={"prefix_caching_eviction_policy": eviction(policy)},
        **fields,
    )
    return testing.build_engine(spec)


def eviction(policy: str) -> Any:
    from megatron.core.inference.config import PrefixCachingEvictionPolicy

    return PrefixCachingEvictionPolicy(policy)


def idle_step(engine: Any) -> None:
    """Make the dummy step with which an idle engine serves other ranks."""
    engine.controller.dummy_forward()
    engine.context.step_count += 1
    # Where the clock of the cache is a count of steps, it goes on, too.
    if hasattr(engine.context, "prefix_cache_lru_clock"):
        engine.context.prefix_cache_lru_clock += 1


def allocator_of(engine: Any) -> Any:
    context = engine.context
    return getattr(context, "kv_block_allocator", None) or context.block_allocator


def cached_blocks(engine: Any) -> dict[int, int]:
    """The cached blocks by their hashes, oldest first."""
    allocator = allocator_of(engine)
    names = ("kv_hash_to_block_id", "hash_to_block_id")
    found: dict[int, int] = next(vars(allocator)[name] for name in names if name in vars(allocator))
    return found


def computed(engine: Any, request: testing.Request) -> tuple[tuple[int, ...], int]:
    """The tokens of a request, and how many of its prompt were computed."""
    widths: list[int] = []

    context = engine.context
    initialize = context.initialize_attention_state

    def initialized(*arguments: Any, **others: Any) -> Any:
        if not others.get("is_expert_parallel_dummy_cuda_graph_step"):
            widths.append(int(context.active_token_count))
        return initialize(*arguments, **others)

    context.initialize_attention_state = initialized
    try:
        (tokens,) = testing.decode(engine, [request]).tokens
    finally:
        del context.initialize_attention_state
    return tuple(tokens), max(widths)


def alone(request: testing.Request) -> tuple[int, ...]:
    (tokens,) = testing.reference_decode(testing.build_model(testing.EngineSpec()), [request])
    return tuple(tokens)


def test_state():
    engine_class()
    assert_state_of_record(IDLE_STEP_PREFIX_CACHE)


@proof
def test_a_prefix_is_still_cached_after_an_idle_step():
    engine = build()
    assert computed(engine, LONG) == (alone(LONG), 28)
    idle_step(engine)
    assert computed(engine, LONG) == (alone(LONG), 4)


@proof
def test_blocks_are_neither_lost_nor_handed_out_twice():
    engine = build()
    allocator = allocator_of(engine)
    needs(hasattr(allocator, "block_bag"), "a stack of the blocks that are free")
    needs(hasattr(allocator, "total_avail"), "a count of them")
    for request in (LONG, OTHER) * 4:
        idle_step(engine)
        assert computed(engine, request)[0] == alone(request)
        idle_step(engine)
        free = set(allocator.block_bag[: allocator.total_avail].tolist())
        cached = set(cached_blocks(engine).values())
        assert not free & cached
        assert len(free | cached) == allocator.total_count - 1


@proof
def test_the_block_that_was_used_last_is_evicted_last():
    """For this the cache's clock has to go on."""
    engine = build()
    allocator = allocator_of(engine)
    needs(hasattr(allocator, "block_timestamps"), "blocks with the times of their last use")
    computed(engine, LONG)
    for _ in range(3):
        idle_step(engine)
    computed(engine, OTHER)
    times = allocator.block_timestamps
    blocks = [*cached_blocks(engine).values()]
    first, second = blocks[:3], blocks[3:]
    assert max(times[first].tolist()) < min(times[second].tolist())


def test_without_a_prefix_cache_all_is_reset():
    spec = testing.EngineSpec(max_requests=16, num_cuda_graphs=2)
    engine = testing.build_engine(spec)
    needs(hasattr(engine.controller, "dummy_forward"), "idle steps")
    needs("is_dummy_forward" in parameters_of(engine.controller._dynamic_step_context_init), "them")
    testing.decode(engine, [LONG])
    engine.controller.dummy_forward()
    context = engine.context
    assert (context.total_request_count, context.active_token_count) == (0, 0)
    assert testing.decode(engine, [LONG]).tokens == (alone(LONG),)


def test_a_reset_by_others_empties_it():
    engine = build()
    computed(engine, LONG)
    engine.context.reset()
    assert cached_blocks(engine) == {}
    assert computed(engine, LONG) == (alone(LONG), 28)
