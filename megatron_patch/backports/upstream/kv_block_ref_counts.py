"""Return a block once for each request that ends, also when they share it (upstream PR #6047).

With prefix caching, requests with a common prefix hold the same KV blocks, and each block counts
its holders. ``KVBlockAllocator.release_memory_blocks()`` gets the blocks of all requests that end
in a step at once. It takes one off the count of each *different* block, however often it is there:
indexed subtraction is not repeated for a repeated index. The count never reaches zero again, the
block neither returns to the pool nor can be evicted, and the pool shrinks until nothing fits.

What differs from upstream's commit 2576c159d4: it subtracts with ``scatter_add_`` and then drops
repeated blocks in two places, one for each eviction policy. Here the repeated blocks are counted
and dropped first, so that everything below sees each block once. (Upstream has come to the same
with #5995.) Neither refuses to take more off a count than is there.

Before 0.17 (main since #3063), the LRU policy also keeps blocks that have no hash, such as the last
of each request: they are neither free nor can they be evicted. They go back to the pool there.

Not covered: counts that are already wrong when the patch is applied, until the next ``reset()``;
and what else is wrong with the LRU policy (upstream #5822, #5995), where blocks are lost or handed
out twice in other ways.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

CONTEXTS = "megatron.core.inference.contexts"

RELEASE = f"{CONTEXTS}.kv_block_allocator:KVBlockAllocator.release_memory_blocks"

KV_BLOCK_REF_COUNTS = Patch(
    id="kv-block-ref-counts",
    kind=Kind.CORRECTNESS,
    summary="Count every holder of a KV block when requests that share it end in one step",
    symptom=(
        "with prefix caching the number of free KV blocks falls over time and does not come back "
        "when the engine is idle; then requests wait for ever, "
        "first those with long prompts, until the engine is restarted"
    ),
    outcome="all blocks are free again when the requests that shared them have ended",
    upstream_pr=6047,
    upstream_commit="2576c159d4dddf177853129ad4f03cb2e339bc0a",
    upstream_date="2026-07-28",
    fixed_in="0.19.0",
    releases=">=0.17,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-24",
    target=f"{CONTEXTS}.dynamic_context:DynamicInferenceContext._compute_prefix_match",
    variants=(
        Variant("main-c9312e6a54", HUNKS.of("main-c9312e6a54")),
        Variant("0.17", HUNKS.of("0.17")),
    ),
    told_by=(RELEASE,),
)
