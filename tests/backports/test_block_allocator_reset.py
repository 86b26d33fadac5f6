"""What `reset` does to the pools of free blocks, on whichever release is installed."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.block_allocator_reset import (
    BLOCK_ALLOCATOR_RESET,
    CONTEXTS,
    KV_BLOCKS,
)
from megatron_patch.edits import Target
from megatron_patch.judge import judge
from megatron_patch.sources import read_source
from megatron_patch.testing.releases import context_parameters
from megatron_patch.verdicts import Verdict, find_definition

from ..conftest import RELEASE, expected_state, not_in_source
from ..upstream import support
from .checks import assert_same_outputs, needs, proof, state_of

MAMBA_SLOTS = f"{CONTEXTS}.mamba_slot_allocator:MambaSlotAllocator.reset"

# What is wrong without the patch: up to 0.15 the reset does not fill the pool, later it makes a
# new tensor for it.
FILLS = RELEASE >= Version("0.16")
SHARES = RELEASE >= Version("0.17")
NO_WRITE = "Inplace update to inference tensor outside InferenceMode"

pytestmark = pytest.mark.usefixtures("device")
only_unfilled = pytest.mark.skipif(FILLS, reason=f"{RELEASE} fills the pool in a reset")
only_new_tensor = pytest.mark.skipif(not FILLS, reason=f"{RELEASE} makes no new pool in a reset")
only_sharing = pytest.mark.skipif(not SHARES, reason=f"{RELEASE} has no prefix caching")

SMALL = testing.EngineSpec(max_requests=4, max_sequence_length=32)


class Pool:
    """The allocator of a new small context, by names that are the same for all releases."""

    def __init__(self) -> None:
        self.context = testing.build_context(SMALL)
        self.allocator = support.allocator(self.context)
        self.blocks = range(support.all_blocks(self.context) - 1)  # the last is for padding

    @property
    def bag(self) -> torch.Tensor:
        return support.tensor(self.allocator, "block_bag")

    @property
    def free(self) -> int:
        return support.free_blocks(self.context)

    def allocate(self, count: int) -> list[int] | None:
        ids = self._call("allocate_memory_blocks", count)
        return None if ids is None else ids.tolist()

    def release(self, ids: list[int]) -> None:
        self._call("release_memory_blocks", self.bag.new_tensor(ids))

    def reset(self, under_inference_mode: bool) -> None:
        with torch.inference_mode(under_inference_mode):
            self.allocator.reset()

    def _call(self, name: str, argument: object):  # type: ignore[no-untyped-def]
        known = name if hasattr(self.allocator, name) else name.replace("block", "chunk")
        return getattr(self.allocator, known)(argument)


def test_state():
    testing.context_class()
    assert state_of(BLOCK_ALLOCATOR_RESET) is expected_state(State.APPLIED)


@not_in_source
@pytest.mark.skipif(RELEASE < Version("0.19"), reason=f"{RELEASE} is older than the change")
def test_source_with_the_fix_of_upstream_is_upstreamed():
    pools = {KV_BLOCKS: ("block_bag", "total_count"), MAMBA_SLOTS: ("free_slots", "max_slots")}

    def read(name: str) -> str | None:
        text = read_source(name)
        for target, (pool, count) in pools.items():
            if text is not None and name == Target.parse(target).module:
                segment = find_definition(target, read_source).segment
                new = f"self.{pool} = torch.arange(self.{count}, dtype=torch.int32, device='cpu')"
                assert segment.count(new) == 1
                in_place = f"torch.arange(self.{count}, out=self.{pool})"
                text = text.replace(segment, segment.replace(new, in_place))
        return text

    judgement = judge(BLOCK_ALLOCATOR_RESET, read)
    assert (judgement.verdict, judgement.variant) == (Verdict.UPSTREAMED, None)


LIVE = [("allocate", 2), ("allocate", 2), ("release", 0)]
RESET, RESET_UNDER_INFERENCE_MODE = ("reset", False), ("reset", True)

operations = st.one_of(
    st.tuples(st.just("allocate"), st.integers(1, 5)),
    st.tuples(st.just("release"), st.integers(0, 7)),
    st.sampled_from([RESET, RESET_UNDER_INFERENCE_MODE]),
)


@given(st.lists(operations, max_size=30))
@example([*LIVE, RESET, *LIVE])
@example([RESET_UNDER_INFERENCE_MODE, *LIVE])
def test_no_block_ever_has_two_owners(sequence):
    check(sequence)


def check(sequence: list[tuple[str, int]]) -> None:
    """Do what ``sequence`` says, and compare with a plain account of who has which block."""
    pool = Pool()
    owned: list[list[int]] = []
    for operation, argument in sequence:
        if operation == "allocate":
            ids = pool.allocate(argument)
            taken = [block for ids in owned for block in ids]
            if argument > len(pool.blocks) - len(taken):
                assert ids is None
            else:
                assert len(ids) == len({*ids}) == argument
                assert {*ids} <= {*pool.blocks} - {*taken}
                owned.append(ids)
        elif operation == "release" and owned:
            pool.release(owned.pop(argument % len(owned)))
        elif operation == "reset":
            pool.reset(under_inference_mode=bool(argument))
            owned.clear()
        assert pool.free == len(pool.blocks) - sum(map(len, owned))


@proof
@pytest.mark.parametrize(
    "sequence",
    [[*LIVE, RESET, *LIVE], [RESET_UNDER_INFERENCE_MODE, *LIVE]],
    ids=["in use", "under inference mode"],
)
def test_after_a_reset_each_block_is_handed_out_once_and_can_be_returned(sequence):
    check(sequence)


@only_unfilled
def test_unpatched_a_block_has_two_owners_after_a_reset(unpatched):
    with pytest.raises(AssertionError):
        check([*LIVE, RESET, *LIVE])
    check([*LIVE, *LIVE])


@only_new_tensor
def test_unpatched_a_block_cannot_be_returned_after_a_reset_under_inference_mode(unpatched):
    with pytest.raises(RuntimeError, match=NO_WRITE):
        check([RESET_UNDER_INFERENCE_MODE, *LIVE])
    check([RESET, *LIVE])


def test_a_reset_keeps_the_tensor():
    pool = Pool()
    bag, address = pool.bag, pool.bag.data_ptr()
    pool.allocate(3)
    for under_inference_mode in (False, True, False):
        pool.reset(under_inference_mode)
        assert pool.bag is bag
        assert (bag.data_ptr(), bag.dtype, bag.is_inference()) == (address, torch.int32, False)
        assert bag.tolist() == [*pool.blocks, len(pool.blocks)]


@pytest.mark.parametrize("under_inference_mode", [False, True])
def test_a_pool_that_cannot_be_written_is_exchanged_in_the_next_reset(under_inference_mode):
    """Unpatched resets leave such pools, and the patch may be applied after them."""
    pool = Pool()
    name = "block_bag" if hasattr(pool.allocator, "block_bag") else "chunk_bag"
    with torch.inference_mode():
        setattr(pool.allocator, name, pool.bag.clone())
    with pytest.raises(RuntimeError, match=NO_WRITE):
        pool.release(pool.allocate(3))
    pool.reset(under_inference_mode)
    assert pool.bag.tolist() == [*pool.blocks, len(pool.blocks)]
    pool.release(pool.allocate(3))


def tables(context) -> list[int]:  # type: ignore[no-untyped-def]
    """The blocks in the tables of all requests, one after the other."""
    rows = support.tensor(context, "request_to_kv_block_ids")[: context.total_request_count]
    return rows[rows != -1].tolist()


def live_reset(rng: random.Random) -> list[int]:
    """Add requests, end some of them, reset, add others; returns the blocks in their tables."""
    context = testing.build_context(testing.EngineSpec(max_tokens=512))
    number = 0
    for adding in (True, False):
        count = 8 if not adding else rng.randint(2, 8)
        for _ in range(count):
            support.add(context, number, range(rng.randint(1, 60)))
            number += 1
        if adding:
            mask = torch.ones(count, dtype=torch.int32, device=context.request_ids.device)
            mask[rng.sample(range(count), rng.randint(1, count - 1))] = 0
            context.update_requests(mask, torch.ones_like(mask, dtype=torch.int64))
            assert context.total_request_count
            context.reset()
    return tables(context)


def test_requests_after_a_reset_share_no_block():
    rng = random.Random(0)
    for _ in range(50):
        blocks = live_reset(rng)
        assert len(blocks) == len({*blocks}) >= 8


@only_unfilled
def test_unpatched_requests_after_a_reset_share_blocks(unpatched):
    rng = random.Random(0)
    shared = [len(blocks) - len({*blocks}) for blocks in (live_reset(rng) for _ in range(50))]
    assert sum(map(bool, shared)) > len(shared) / 2


REQUESTS = tuple(
    testing.Request(prompt=tuple(range(5 * i, 5 * i + 20)), num_tokens=6 + i) for i in range(6)
)


def decode_after_interruption() -> tuple[tuple[int, ...], ...]:
    """Decode after a reset of the engine when one request had ended and others had not."""
    engine = testing.build_engine(testing.EngineSpec(max_tokens=128))
    begun = [testing.Request(prompt=tuple(range(40)), num_tokens=n) for n in (2, 30, 30)]
    with pytest.raises(RuntimeError, match="did not end within 5 steps"):
        testing.decode(engine, begun, max_steps=5)
    assert engine.context.total_request_count == 2
    engine.reset()
    return testing.decode(engine, REQUESTS).tokens


@pytest.fixture(scope="module")
def expected(device):  # type: ignore[no-untyped-def]
    return testing.reference_decode(testing.build_model(testing.EngineSpec()), REQUESTS)


@proof
def test_an_engine_that_was_reset_in_mid_flight_decodes_as_the_model_alone(expected):
    assert decode_after_interruption() == expected


@only_unfilled
def test_unpatched_an_engine_that_was_reset_in_mid_flight_mixes_up_requests(unpatched, expected):
    assert decode_after_interruption() != expected


def decode_with_evictions() -> int:
    """Reset an engine under inference mode, as graph warm-up does, and fill its cache; its steps.

    0.16 and 0.17 return blocks outside of inference mode when a request ends, later releases when
    one is evicted from the prefix cache.
    """
    fields: dict[str, object] = {}
    if "prefix_caching_eviction_policy" in context_parameters():
        from megatron.core.inference.config import PrefixCachingEvictionPolicy

        policy = PrefixCachingEvictionPolicy.LRU
        options = {"prefix_caching_eviction_policy": policy}
        fields = {"enable_prefix_caching": True, "options": options}
    engine = testing.build_engine(
        testing.EngineSpec(max_requests=4, max_sequence_length=64, **fields)  # type: ignore[arg-type]
    )
    with torch.inference_mode():
        engine.reset()
    steps = 0
    for first in range(0, 80, 10):  # eight times two blocks to cache; there are 16
        request = testing.Request(prompt=tuple(range(first, first + 40)), num_tokens=3)
        steps += testing.decode(engine, [request], capture_logits=False).steps
    return steps


@proof
def test_an_engine_that_was_reset_under_inference_mode_decodes_and_evicts():
    assert decode_with_evictions() == 8 * 3


@only_new_tensor
def test_unpatched_an_engine_that_was_reset_under_inference_mode_raises(unpatched):
    with pytest.raises(RuntimeError, match=NO_WRITE):
        decode_with_evictions()


def return_mamba_states() -> int:
    """Reset the pool of Mamba states in inference mode, use and return two; how many miss."""
    options = {**support.hybrid(), "prefix_caching_mamba_gb": 0.05}
    spec = testing.EngineSpec(enable_prefix_caching=True, options=options)
    slots = testing.build_context(spec).mamba_slot_allocator
    with torch.inference_mode():
        slots.reset()
    used = slots.allocate_slots_batch([3, 5])
    slots.register_block_hashes_batch([3, 5], [103, 105])
    assert slots.free_count == slots.max_slots - 2
    slots.on_kv_blocks_deregistered([3, 5], {103, 105})
    assert {*used} <= {*slots.free_slots[: slots.free_count].tolist()}
    return slots.max_slots - slots.free_count


@proof
def test_mamba_states_can_be_returned_after_a_reset_under_inference_mode():
    needs("prefix_caching_mamba_gb" in context_parameters(), "a cache of Mamba states")
    assert return_mamba_states() == 0


@only_sharing
def test_unpatched_mamba_states_cannot_be_returned(unpatched):
    with pytest.raises(RuntimeError, match=NO_WRITE):
        return_mamba_states()


def test_tokens_and_logits_are_unchanged_after_an_idle_reset(unpatched):
    def run() -> testing.Decoded:
        engine = testing.build_engine(testing.EngineSpec(max_tokens=128))
        testing.decode(engine, REQUESTS[:2])
        engine.reset()
        return testing.decode(engine, REQUESTS)

    without = run()
    megatron_patch.install()
    patched = run()
    assert_same_outputs(patched, without)
