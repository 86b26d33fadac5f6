"""What `reset` of a context does to its KV blocks."""

from __future__ import annotations

import inspect

import pytest

from megatron_patch import testing
from megatron_patch.testing.releases import release

from .. import support
from ..mirror import mirrors


@mirrors(
    "contexts/test_kv_block_allocator.py",
    "test_allocate_release_reset_round_trip_no_prefix_caching",
    digest="003203351b101aaa",
)
def test_allocate_release_reset_round_trip_no_prefix_caching():
    context = testing.build_context(testing.EngineSpec(max_requests=4, max_sequence_length=32))
    blocks = support.allocator(context)
    if "block_bag" not in inspect.getsource(blocks.reset):
        pytest.skip(f"{release()}: reset of the allocator leaves the order of the blocks as it is")
    total = support.all_blocks(context)
    assert total >= 8
    assert support.free_blocks(context) == total - 1

    first = blocks.allocate_memory_blocks(3).tolist()
    second = blocks.allocate_memory_blocks(2).tolist()
    assert len({*first, *second}) == 5
    assert blocks.dummy_block_idx not in {*first, *second}
    assert support.free_blocks(context) == total - 6
    released = blocks.block_bag.new_tensor(first)
    blocks.release_memory_blocks(released[:0])
    assert support.free_blocks(context) == total - 6
    blocks.release_memory_blocks(released)
    assert support.free_blocks(context) == total - 3
    assert blocks.is_memory_available(total - 3)
    assert not blocks.is_memory_available(total - 2)
    assert blocks.allocate_memory_blocks(total - 2) is None
    assert support.free_blocks(context) == total - 3

    # Also with blocks in use, each is there once and once only afterwards.
    context.reset()
    assert support.free_blocks(context) == total - 1
    assert blocks.block_bag.tolist() == list(range(total))
    every = blocks.allocate_memory_blocks(total - 1).tolist()
    assert sorted(every) == list(range(total - 1))
    assert blocks.allocate_memory_blocks(1) is None
