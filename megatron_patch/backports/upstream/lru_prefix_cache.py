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

from ... import hunks
from ...edits import Requires
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

INFERENCE = "megatron.core.inference"

CONTEXT = f"{INFERENCE}.contexts.dynamic_context:DynamicInferenceContext"

RESUME = f"{CONTEXT}.resume_paused_requests"

COMES_BACK_WITHOUT_HASHES = Requires(
    "megatron.core.inference.inference_request:DynamicInferenceRequestRecord.checkpoint",
    "a request that comes back has no hashes: its KV cache is computed afresh",
)
AVAILABLE_IN_0_19 = Requires(
    f"{CONTEXT}.check_availability",
    "0.19 counts what is available as the hunks of 0.17 do",
)

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
    variants=(
        Variant("main-c9312e6a54", (*HUNKS.of("main-c9312e6a54"), COMES_BACK_WITHOUT_HASHES)),
        Variant("0.17", (*HUNKS.of("0.17"), COMES_BACK_WITHOUT_HASHES)),
        Variant("0.19", (AVAILABLE_IN_0_19, *HUNKS.of("0.19"), COMES_BACK_WITHOUT_HASHES)),
    ),
    told_by=(RESUME,),
)
