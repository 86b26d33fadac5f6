"""What `reset` of a context does to its prefix cache."""

from __future__ import annotations

from megatron_patch import testing

from .. import support
from ..mirror import mirrors


class TestPrefixCacheReuse:
    @mirrors(
        "contexts/test_dynamic_prefix_caching.py",
        "TestPrefixCacheReuse.test_reset_preserves_prefix_cache_when_requested",
        digest="fdfe3684d64e5d82",
    )
    def test_reset_preserves_prefix_cache_when_requested(self):
        support.skip_without_argument(testing.context_class().reset, "preserve_prefix_cache")
        context = testing.build_context(testing.EngineSpec(enable_prefix_caching=True))
        size = context.block_size_tokens
        prompt = range(3 * size)
        fields = {"block_size_tokens": size, "enable_prefix_caching": True}
        support.add(context, 1, prompt, **fields)
        known = dict(context.kv_block_allocator.kv_hash_to_block_id)
        assert len(known) == 3
        assert context.token_to_input_ids[: 3 * size].tolist() == list(prompt)

        context.reset(preserve_prefix_cache=True)
        assert context.kv_block_allocator.kv_hash_to_block_id == known
        # The ids go either way: they belong to the step, not to the cache.
        assert not context.token_to_input_ids.any()
        assert not context.token_to_pos_ids.any()

        context.reset()
        assert context.kv_block_allocator.kv_hash_to_block_id == {}
