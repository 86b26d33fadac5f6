"""Whose prefix cache is gone after suspension, and who is told."""

from __future__ import annotations

import pytest

from megatron_patch import testing

from .. import support
from ..mirror import mirrors


@mirrors(
    "contexts/test_kv_event_publication.py",
    "test_suspend_clears_only_recomputed_cache",
    digest="772ef9df8e872ce1",
)
@pytest.mark.parametrize(
    ("mode", "cleared"), [("persist", False), ("offload", False), ("recompute", True)]
)
def test_suspend_clears_only_recomputed_cache(mode, cleared, mocker):
    support.skip_without_argument(support.options_class(), "enable_prefix_caching")
    spec = testing.EngineSpec(kv_cache_management_mode=mode, enable_prefix_caching=True)
    engine = testing.build_engine(spec)
    context = engine.context
    prompt = tuple(range(40))
    testing.decode(engine, [testing.Request(prompt=prompt, num_tokens=1)])
    size = context.block_size_tokens
    fields = {"block_size_tokens": size, "enable_prefix_caching": True}
    support.add(context, 9, prompt, **fields)
    blocks = context.kv_block_allocator
    known = dict(blocks.kv_hash_to_block_id)
    assert len(known) == len(prompt) // size
    told = mocker.Mock()
    if hasattr(context, "dynamo_helper"):
        context.dynamo_helper.queue_kv_stored_event({"block_hashes": [101]})
        context.dynamo_helper.add_kv_event_listener(told)

    testing.suspend(engine)
    if hasattr(context, "dynamo_helper"):
        context.dynamo_helper.publish_pending_kv_stored_events()
        assert told.call_args_list == ([mocker.call("cleared", {})] if cleared else [])
    testing.resume(engine)
    assert (context.kv_block_allocator.kv_hash_to_block_id == known) is not cleared
    if cleared:
        assert context.kv_block_allocator.kv_hash_to_block_id == {}
        assert support.free_blocks(context) == support.all_blocks(context) - 1
