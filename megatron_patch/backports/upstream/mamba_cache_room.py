"""Go on when the cache of Mamba states is full (upstream #6091 in part).

A hybrid model with prefix caching keeps Mamba states of blocks of prompts, in
``prefix_caching_mamba_gb``. After a step with prompts the engine needs room for all states of that
step at once. It takes it from blocks that no request uses. Where there are not enough of them, as
with more long prompts at a time than there is room for, it raises ``RuntimeError: No evictable
Mamba cache slots available``, which ends the engine and all its requests.

With this patch the states that there is no room for are not cached. Their requests go on with their
own states; another request with the same beginning computes it again.

What differs from upstream: what has room is counted before anything is taken, where upstream
catches an exception of the allocation; which states are kept is the same. How the oldest blocks are
found is left as it is.

Not covered: ``allocate_slots_batch()`` itself, which still raises if somebody else calls it.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = (
    "megatron.core.inference.contexts.mamba_slot_allocator:"
    "MambaSlotAllocator.commit_intermediate_states"
)

MAMBA_CACHE_ROOM = Patch(
    id="mamba-cache-room",
    kind=Kind.CORRECTNESS,
    summary="Leave Mamba states uncached that the prefix cache has no room for (#6091 in part)",
    symptom=(
        "RuntimeError: No evictable Mamba cache slots available ends the engine of a hybrid model "
        "with prefix caching when requests in flight use the whole cache of Mamba states"
    ),
    outcome="all requests go on; what has no room in the cache is computed again",
    upstream_pr=6091,
    upstream_commit="d04e7a0ba77d5ee14a7584d22379579fac94fb66",
    upstream_date="2026-07-30",
    fixed_in="0.20.0",
    releases=">=0.17,<0.20",
    removal="no supported release is older than 0.20.0",
    updated="2026-11-26",
    target=TARGET,
    variants=(
        Variant("main-c4bffde9e5", HUNKS.of("main-c4bffde9e5")),
        Variant("0.17", HUNKS.of("0.17")),
    ),
    told_by=(TARGET,),
)
