"""What `reset` of a context does to its KV blocks."""

from __future__ import annotations

from typing import Any

import torch

from megatron_patch import testing

from .. import support
from ..mirror import mirrors


def named(blocks: Any, name: str) -> Any:
    """An attribute of the allocator. 0.14 says chunk for block."""
    return getattr(blocks, name if hasattr(blocks, name) else name.replace("block", "chunk"))


@mirrors(
    "contexts/test_kv_block_allocator.py",
    "test_allocate_release_reset_round_trip_no_prefix_caching",
    digest="003203351b101aaa",
)
def test_allocate_release_reset_round_trip_no_prefix_caching():
    context = testing.build_context(testing.EngineSpec(max_requests=4, max_sequence_length=32))
    blocks = support.allocator(context)
    allocate = named(blocks, "allocate_memory_blocks")
    release = named(blocks, "release_memory_blocks")
    bag = named(blocks, "block_bag")
    total = support.all_blocks(context)
    assert total >= 8
    assert support.free_blocks(context) == total - 1

    first = allocate(3).tolist()
    second = allocate(2).tolist()
    assert len({*first, *second}) == 5
    assert named(blocks, "dummy_block_idx") not in {*first, *second}
    assert support.free_blocks(context) == total - 6
    released = bag.new_tensor(first)
    release(released[:0])
    assert support.free_blocks(context) == total - 6
    release(released)
    assert support.free_blocks(context) == total - 3
    assert blocks.is_memory_available(total - 3)
    assert not blocks.is_memory_available(total - 2)
    assert allocate(total - 2) is None
    assert support.free_blocks(context) == total - 3

    # Also with blocks in use, each is there once and once only afterwards.
    context.reset()
    assert support.free_blocks(context) == total - 1
    assert named(blocks, "block_bag").tolist() == list(range(total))
    every = allocate(total - 1).tolist()
    assert sorted(every) == list(range(total - 1))
    assert allocate(1) is None


@mirrors(
    "contexts/test_kv_block_allocator.py",
    "test_reset_under_inference_mode_preserves_mutable_block_bag",
    digest="8ab2fa43b5f54679",
)
def test_reset_under_inference_mode_preserves_mutable_block_bag():
    context = testing.build_context(testing.EngineSpec(max_requests=4, max_sequence_length=32))
    blocks = support.allocator(context)
    bag = named(blocks, "block_bag")
    with torch.inference_mode():
        blocks.reset()
    named(blocks, "release_memory_blocks")(named(blocks, "allocate_memory_blocks")(1))
    assert named(blocks, "block_bag") is bag
    assert support.free_blocks(context) == support.all_blocks(context) - 1
