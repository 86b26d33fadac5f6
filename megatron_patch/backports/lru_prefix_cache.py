"""Make the LRU policy of prefix caching evict the right blocks (upstream PRs #5822 and #5995).

Under this policy the KV blocks of requests that have ended stay cached, and are evicted when a
request needs a block and none is free. What goes wrong as soon as that happens:

- A step in which every request needs a new block looks for free blocks only. With all others
  cached it resumes none: ``AssertionError: active_request_count == 0``.
- A block can be evicted before those that follow it in the prompt. These are still found by their
  hashes, and looking up the one that is gone raises ``KeyError``.
- A request gets its new blocks before it holds the cached ones that it shares. Making room for
  the former can evict the latter, which then come back as the former: a block is in the request's
  table twice, and the request decodes to wrong tokens. For the same reason it is let in when there
  is not enough room for both.
- When requests have to be evicted, blocks that they share with others count as released. Too few
  requests go, and it ends in the same ``AssertionError``. So it does under the default policy,
  ``REF_ZERO``.

What differs from upstream's commits 52cf20d06a and ee3864907a: instead of keeping the tree of
blocks, the time stamps order it. Each use of a block is one of all blocks before it, so a stamp
that gets lower with each block of a prompt makes the oldest block one that nothing cached follows.
The order is upstream's but for blocks that were used in the same step.

Not covered, on purpose: an evicted or recomputed request comes back without the hashes of its
blocks, and its KV cache is computed afresh. In ee3864907a it has hashes, and skips what is cached
of it. Then the engine takes log probs of generated tokens for those of the prompt that it skipped,
and drops them; and after the weights were changed it goes on from a cache of the old ones, while
its ``kv_cache_epoch`` says that it is new.

Nor are the other changes of ee3864907a, where active requests may use the blocks that are set aside
for paused ones; time stamps of blocks that are cached when the patch is applied; and a request that
alone needs more blocks than there are (0.17 does not refuse it).
"""

from __future__ import annotations

from ..model import Edit, Family, Kind, Known, Patch, Substitute

INFERENCE = "megatron.core.inference"
CONTEXT = f"{INFERENCE}.contexts.dynamic_context:DynamicInferenceContext"
RESUME = f"{CONTEXT}.resume_paused_requests"

STAMP = Substitute(
    f"{INFERENCE}.contexts.kv_block_allocator:KVBlockAllocator.update_timestamps",
    find="self.block_timestamps[block_ids] = self.context.prefix_cache_lru_clock",
    put="""
# Lower from block to block: none is evicted before those that follow it in the prompt.
latest = self.context.prefix_cache_lru_clock * self.total_count
self.block_timestamps[block_ids] = latest - torch.arange(
    block_ids.numel(), device=self.block_timestamps.device
)
""",
    digest="006ee5e3311a23dc",
)

AVAILABILITY = Substitute(
    f"{CONTEXT}.check_availability",
    find="""
(_, num_blocks_from_pool, _, _, _, effective_prefill_chunk_length) = self._compute_prefix_match(
    req, req.remaining_prompt_length
)
""",
    put="""
(matched_block_ids, num_blocks_from_pool, _, _, _, effective_prefill_chunk_length) = (
    self._compute_prefix_match(req, req.remaining_prompt_length)
)
if matched_block_ids:
    # Those that nobody holds yet cannot be evicted for this request, which will hold them.
    num_holders = self.kv_block_allocator.block_ref_counts[matched_block_ids]
    num_blocks_from_pool += int((num_holders == 0).sum())
""",
    digest="930971cdfc9e5225",
)


# In 0.19, availability is as the patch would have it. Without this condition, its edits would be
# taken for all that older source needs where one of the other functions is not known.
AVAILABLE_IN_0_19 = """
kv_cache_available = self.kv_block_allocator.is_memory_available(
    num_blocks_from_pool, potential_matched_count=potential_matched_count
)
"""
HAS_AVAILABILITY = Substitute(
    f"{CONTEXT}.check_availability",
    find=AVAILABLE_IN_0_19,
    put=AVAILABLE_IN_0_19,
    digest="7e9592d26f50a43b",
)


def _hold_first(device: str, digest: str) -> tuple[Edit, Edit]:
    """The edits of ``add_request``: hold matched blocks before new ones are allocated."""
    target = f"{CONTEXT}.add_request"
    arguments = f"matched_block_ids, dtype=torch.int32, device={device}"
    if len(arguments) > 60:  # as Megatron's source is formatted
        arguments = f"\n        {arguments}\n    "
    allocate = """
new_block_ids = None
if num_blocks_from_pool > 0:
    new_block_ids = self.kv_block_allocator.allocate_memory_blocks(num_blocks_from_pool)
    if new_block_ids is None or len(new_block_ids) != num_blocks_from_pool:
"""
    overflow = "        raise BlockOverflowError(req.request_id)\n"
    hold = f"""
if num_matched_blocks > 0:
    matched_tensor = torch.tensor({arguments})
    self.kv_block_allocator.block_ref_counts[matched_tensor] += 1
"""
    update = """
    if self.prefix_caching_eviction_policy == PrefixCachingEvictionPolicy.LRU:
        self.kv_block_allocator.update_timestamps(matched_tensor)
"""
    why = "# Hold matched (shared) blocks first: to allocate new ones may evict what nobody holds."
    let_go = """
        if num_matched_blocks > 0:
            self.kv_block_allocator.release_memory_blocks(matched_tensor)
"""
    complete = "total_tokens_after = req.finished_chunk_token_count + prefill_chunk_length"
    stamp = """
# All blocks up to here are used, those of earlier chunks too.
self.kv_block_allocator.update_timestamps(
    self.request_to_kv_block_ids[current_id][:overall_required_blocks]
)
"""
    return (
        Substitute(
            target,
            find=allocate + overflow + hold + update,
            put=f"{why}{hold}{allocate.rstrip()}{let_go}{overflow}",
            digest=digest,
        ),
        Substitute(target, find=complete, put=stamp + complete, digest=digest),
    )


COUNT_EVICTABLE = Substitute(
    RESUME,
    find="""
resume_request_count = min(
    torch.nonzero(paused_block_counts_cumsum <= active_block_count_avail).numel(),
    self.kv_block_allocator.total_avail,
)
""",
    put="""
block_count_avail = self.kv_block_allocator.total_avail
if self.enable_prefix_caching and block_count_avail < self.paused_request_count:
    # Blocks that are cached and that nobody holds are evicted when they are needed.
    block_count_avail += int(self.kv_block_allocator.get_evictable_block_count())
resume_request_count = min(
    torch.nonzero(paused_block_counts_cumsum <= active_block_count_avail).numel(),
    block_count_avail,
)
""",
    digest="5cb3861dfb851ada",
)

EVICT_FOR_RESUMED = Substitute(
    RESUME,
    find="""
assert num_new_blocks <= self.kv_block_allocator.total_avail
block_ids = self.kv_block_allocator.allocate_memory_blocks(num_new_blocks)
""",
    put="""
block_ids = self.kv_block_allocator.allocate_memory_blocks(num_new_blocks)
assert block_ids is not None
""",
    digest="5cb3861dfb851ada",
)


def _count_released(digest: str) -> Substitute:
    """Requests that are evicted release only what nobody else holds."""
    flip = """
paused_block_counts = paused_block_counts[-overflow_paused_request_count:].flip(dims=[0])
"""
    return Substitute(
        f"{CONTEXT}.evict_overflow_paused_requests",
        find=flip,
        put=flip.rstrip()
        + """
if self.enable_prefix_caching:
    # A block that requests share is released with the last of them.
    num_holders = self.kv_block_allocator.block_ref_counts.clone()
    for index in range(overflow_paused_request_count):
        block_ids = self.request_to_kv_block_ids[self.paused_request_count - 1 - index]
        block_ids = block_ids[block_ids != -1]
        num_holders[block_ids] -= 1
        paused_block_counts[index] = (num_holders[block_ids] == 0).sum()
""",
        digest=digest,
    )


# The functions above have no part in it, but source that an earlier form of this patch was made in
# gives hashes to requests that come back, and must not be taken for source that has this one.
WITHOUT_HASHES = """
new_request = DynamicInferenceRequest(
    request_id=old_request.request_id,
    prompt_tokens=new_prompt_tokens,
    sampling_params=new_sampling_params,
    policy_epoch=policy_epoch,
    kv_cache_epoch=kv_cache_epoch,
)
"""
COMES_BACK_WITHOUT_HASHES = Substitute(
    f"{INFERENCE}.inference_request:DynamicInferenceRequestRecord.checkpoint",
    find=WITHOUT_HASHES,
    put=WITHOUT_HASHES,
    digest="d081a599ff7dc8ac",
)


def _of_resumed(evict_digest: str) -> tuple[Edit, ...]:
    """What all releases need: the edits to resume and evict requests, and the condition."""
    released = _count_released(evict_digest)
    return COUNT_EVICTABLE, EVICT_FOR_RESUMED, released, COMES_BACK_WITHOUT_HASHES


LRU_PREFIX_CACHE = Patch(
    id="lru-prefix-cache",
    kind=Kind.CORRECTNESS,
    summary="Evict cached KV blocks in the right order, and none that is going to be used",
    symptom=(
        "with prefix caching and its LRU policy, once the KV cache is full: AssertionError: "
        "active_request_count == 0 with no hidden chunked prefill; KeyError in "
        "_find_kv_match_count(); or wrong tokens"
    ),
    outcome=(
        "requests get the tokens that they get without a cache, also on a KV cache that is too "
        "small for them"
    ),
    upstream_pr=5995,
    upstream_commit="ee3864907a6b2973e742839c31643110b7e3aa9c",
    upstream_date="2026-07-31",
    fixed_in="0.20.0",
    releases=">=0.17,<0.20",
    removal="no supported release is older than 0.20.0",
    updated="2026-11-25",
    target=f"{CONTEXT}._compute_prefix_match",
    families=(
        Family(
            "0.17.0 and 0.17.1",
            (
                STAMP,
                AVAILABILITY,
                *_hold_first("torch.cuda.current_device()", "e90b1ca1a853eba2"),
                *_of_resumed("a3f68bc279b59ac0"),
            ),
        ),
        Family(
            "0.18.0 to 0.18.2",
            (
                STAMP,
                AVAILABILITY,
                *_hold_first("'cpu'", "a5768741aec73a5d"),
                *_of_resumed("7dd42af4fd84bb2d"),
            ),
        ),
        Family(
            "0.19.0 to 0.19.2, and main between #5822 and #5995",
            (HAS_AVAILABILITY, *_of_resumed("7dd42af4fd84bb2d")),
        ),
    ),
    upstreamed=(Known(RESUME, "3198eba1011f0810", "main with #5995"),),
)
