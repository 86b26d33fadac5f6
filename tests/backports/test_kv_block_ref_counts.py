"""Counts of the requests that hold a KV block, on whichever release is installed.

From 0.19 on these tests run upstream's own code: it has to do the same.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.kv_block_ref_counts import KV_BLOCK_REF_COUNTS
from megatron_patch.testing.releases import context_parameters

from ..conftest import RELEASE, expected_state
from ..upstream import support
from .checks import assert_same_outputs, needs, proof, state_of

SHARES = RELEASE >= Version("0.17")
PATCHED = SHARES and RELEASE < Version("0.19")

pytestmark = pytest.mark.usefixtures("device")
only_sharing = pytest.mark.skipif(not SHARES, reason=f"{RELEASE} has no prefix caching")
only_patched = pytest.mark.skipif(
    not PATCHED, reason=f"{RELEASE} has no prefix caching, or counts right"
)
policies = pytest.mark.parametrize("policy", ["REF_ZERO", "LRU"])


def spec(policy: str = "REF_ZERO", **fields) -> testing.EngineSpec:  # type: ignore[no-untyped-def]
    from megatron.core.inference.config import PrefixCachingEvictionPolicy

    options = {"prefix_caching_eviction_policy": PrefixCachingEvictionPolicy[policy]}
    return testing.EngineSpec(enable_prefix_caching=True, options=options, **fields)


def free(context) -> int:  # type: ignore[no-untyped-def]
    """Blocks that a new request can get: those in the pool, and those cached for nobody."""
    blocks = support.allocator(context)
    cached = (blocks.block_ref_counts == 0) & (blocks.block_hashes != -1)
    return int(support.free_blocks(context)) + int(cached.sum())


def holders(context) -> list[int]:  # type: ignore[no-untyped-def]
    """For each block, how many requests have it in their table."""
    rows = context.request_to_kv_block_ids[: context.total_request_count].flatten()
    found = torch.bincount(rows[rows != -1], minlength=context.kv_block_allocator.total_count)
    return found.tolist()


def add(context, request_id: int, prompt: list[int]) -> None:  # type: ignore[no-untyped-def]
    fields = {"block_size_tokens": context.block_size_tokens, "enable_prefix_caching": True}
    support.add(context, request_id, prompt, **fields)


def end(context, active: list[int]) -> None:  # type: ignore[no-untyped-def]
    """End a step: requests with a 0 have ended, the others go on."""
    device = context.request_ids.device
    mask = torch.tensor(active, dtype=torch.int32, device=device)
    context.update_requests(mask, torch.ones(len(active), dtype=torch.int64, device=device))


def wave(context, number: int, rng: random.Random) -> None:  # type: ignore[no-untyped-def]
    """Requests with a common prefix that no other wave has, most of which end in one step."""
    size = context.block_size_tokens
    prefix = [number * 1000 + i for i in range(size * rng.randint(1, 2))]
    count = rng.choice((2, 2, 3, 4))
    for index in range(count):
        # No tail fills its block. A request that needs another block while all free ones are cached
        # would meet the defect that upstream #5995 has fixed.
        tail = [number * 1000 + 500 + 20 * index + i for i in range(rng.randint(1, size - 1))]
        add(context, 10 * number + index, prefix + tail)
    one_stays = number % 4 == 0
    end(context, [0] * (count - one_stays) + [1] * one_stays)
    assert context.kv_block_allocator.block_ref_counts.tolist() == holders(context)
    if one_stays:
        end(context, [0])


def test_state():
    testing.context_class()
    expected = State.NOT_APPLICABLE if not SHARES else State.APPLIED
    expected = State.UPSTREAMED if RELEASE >= Version("0.19") else expected
    assert state_of(KV_BLOCK_REF_COUNTS) is expected_state(expected)


@only_sharing
@policies
def test_a_thousand_waves_leave_every_block_free(policy):
    context = testing.build_context(spec(policy, max_tokens=128))
    start, rng = free(context), random.Random(0)
    for number in range(1000):
        wave(context, number, rng)
        assert free(context) == start
        assert not context.kv_block_allocator.block_ref_counts.any()
    # The whole pool can be handed out, each block once.
    every = context.kv_block_allocator.allocate_memory_blocks(start).tolist()
    assert sorted(every) == list(range(start))


@only_patched
@policies
def test_unpatched_a_wave_loses_the_blocks_of_its_prefix(unpatched, policy):
    context = testing.build_context(spec(policy, max_tokens=128))
    start, size = free(context), context.block_size_tokens
    for number in range(4):
        prefix = [number * 100 + i for i in range(2 * size)]
        for index in range(3):
            add(context, 10 * number + index, [*prefix, 50 + index])
        end(context, [0, 0, 0])
        assert free(context) == start - 2 * (number + 1)


@pytest.fixture
def sharing(device) -> None:  # type: ignore[no-untyped-def]
    """Source that counts the holders of a block, by which a policy says what becomes of it."""
    known = {"enable_prefix_caching", "prefix_caching_eviction_policy"}
    needs(known <= {*context_parameters()}, "prefix caching with a policy")


@proof
@pytest.mark.usefixtures("sharing")
@policies
def test_a_single_end_and_a_common_end_count_the_same(policy):
    """Three requests that share their first block: one ends alone, then two in one step."""
    context = testing.build_context(spec(policy))
    start = free(context)
    size, counts = context.block_size_tokens, support.allocator(context).block_ref_counts
    for index in range(3):
        add(context, index, [*range(size), 100 + index])
    shared = int(context.request_to_kv_block_ids[0, 0])
    assert counts[shared] == 3
    end(context, [0, 1, 1])
    assert counts[shared] == 2
    end(context, [0, 0])
    assert counts[shared] == 0
    assert free(context) == start


@only_sharing
@policies
@given(data=st.data())
def test_counts_are_those_of_the_holders(policy, data):
    """Each block has any number of holders, which release it in groups of any size."""
    context = testing.build_context(spec(policy, max_requests=4, max_sequence_length=32))
    blocks = context.kv_block_allocator
    total = blocks.total_avail
    ids = blocks.allocate_memory_blocks(data.draw(st.integers(1, total))).tolist()
    cached = data.draw(st.sets(st.sampled_from(ids)))
    blocks.register_kv_block_hashes(sorted(cached), [1000 + block for block in sorted(cached)])
    held = Counter({block: data.draw(st.integers(1, 5)) for block in ids})
    for block, count in held.items():
        blocks.block_ref_counts[block] = count
    left = data.draw(st.permutations(list(held.elements())))
    while left:
        cut = data.draw(st.integers(1, len(left)))
        group, left = left[:cut], left[cut:]
        held.subtract(group)
        blocks.release_memory_blocks(blocks.block_bag.new_tensor(group))
        assert all(int(blocks.block_ref_counts[block]) == held[block] for block in ids)
        released = {block for block in ids if not held[block]}
        if policy == "LRU":
            released -= cached
        pool = blocks.block_bag[: blocks.total_avail].tolist()
        assert sorted(pool) == sorted({*range(total)} - {*ids} | released)


def waves(engine, most: int, until: int = 0) -> list[int]:  # type: ignore[no-untyped-def]
    """Numbers of free blocks after each wave of 4 equal requests, until at most `until` are."""
    left = [free(engine.context)]
    while len(left) <= most and left[-1] > until:
        prompt = tuple((len(left) + 3 * i) % 128 for i in range(40))
        request = testing.Request(prompt, num_tokens=3)
        decoded = testing.decode(engine, [request] * 4, capture_logits=False)
        assert len(set(decoded.tokens)) == 1
        left.append(free(engine.context))
    return left


# It ends within its sixth block, for the reason in `wave`.
LONG = testing.Request(prompt=tuple(range(20, 112)), num_tokens=4)


@only_sharing
@policies
def test_the_engine_has_all_blocks_back_after_each_of_forty_waves(policy):
    engine = testing.build_engine(spec(policy, max_tokens=128))
    left = waves(engine, most=40)
    assert left == [free(engine.context)] * 41
    (tokens,) = testing.decode(engine, [LONG]).tokens
    alone = testing.build_engine(testing.EngineSpec(max_tokens=128))
    assert testing.decode(alone, [LONG]).tokens == (tokens,)


@only_patched
@policies
def test_unpatched_the_engine_runs_out_of_blocks_and_a_long_prompt_waits_for_ever(
    unpatched, policy
):
    engine = testing.build_engine(spec(policy, max_tokens=128))
    left = waves(engine, most=40, until=4)
    assert left[-1] <= 4
    with pytest.raises(RuntimeError, match=r"requests \[0\] of 1 did not end"):
        testing.decode(engine, [LONG], max_steps=200)


REQUESTS = (
    testing.Request(prompt=tuple(range(1, 40)), num_tokens=5),
    testing.Request(prompt=(*range(1, 33), 90, 91), num_tokens=9),
    testing.Request(prompt=tuple(range(1, 40)), num_tokens=12, arrival_step=3),
    testing.Request(prompt=(9, 10), num_tokens=7, arrival_step=6),
)


@only_patched
@pytest.mark.parametrize("caching", [True, False], ids=["caching", "no caching"])
def test_tokens_and_logits_are_unchanged_where_no_two_requests_end_together(unpatched, caching):
    fields = spec() if caching else testing.EngineSpec()
    engine = testing.build_engine(fields)
    without = testing.decode(engine, REQUESTS)
    assert support.free_blocks(engine.context) == support.all_blocks(engine.context) - 1
    megatron_patch.install()
    patched = testing.decode(testing.build_engine(fields), REQUESTS)
    assert [len(tokens) for tokens in patched.tokens] == [r.num_tokens for r in REQUESTS]
    assert_same_outputs(patched, without)
