"""Fill the pool of free KV blocks again in every reset, in place (upstream PRs #2584, #6091).

The pool is a stack of block ids. Two defects of the allocator's ``reset()``:

- Up to 0.15.3 it only sets the number of free blocks back. Blocks return to the stack over the
  entries of others that are still in use, so that with live requests some ids are in it twice and
  others not at all. After the reset two requests get the same block and write over each other's
  keys and values: wrong text, without an error (#2584).
- From 0.16.0 on it makes a new tensor. Under ``torch.inference_mode()``, where 0.18 and 0.19 reset
  after each CUDA graph that they capture, that is an inference tensor, and returning or evicting
  blocks outside of that mode raises (#6091). The pool of Mamba states for prefix caching has the
  same defect; its blocks are returned by the same calls.

What differs from upstream: 0.14 and 0.15 get the filling in place of #6091 and not the new tensor
of #2584, which has the second defect. And a pool that is an inference tensor already, because a
reset before the patch was applied has left it so, is exchanged: upstream's ``arange(out=...)``
would raise on it where the reset without any patch does not.

Not covered: a pool that is wrong already when the patch is applied, until the next reset; the rest
of #6091, on running out of Mamba states, which ``mamba-cache-room`` is for; and
``MambaMetadata.reset()``, which makes a new tensor too: ``mamba-metadata-reset``.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

CONTEXTS = "megatron.core.inference.contexts"

KV_BLOCKS = f"{CONTEXTS}.kv_block_allocator:KVBlockAllocator.reset"

BLOCK_ALLOCATOR_RESET = Patch(
    id="block-allocator-reset",
    kind=Kind.CORRECTNESS,
    summary="Fill the pool of free KV blocks in every reset, in place (#2584 and #6091)",
    symptom=(
        "0.14 and 0.15: after engine.reset() or context.reset() with requests in flight, requests "
        "answer with text of others. 0.16 to 0.19: RuntimeError: Inplace update to inference "
        "tensor outside InferenceMode is not allowed, from the allocator of KV blocks, after a "
        "reset under torch.inference_mode() such as that of CUDA graph warm-up"
    ),
    outcome="after a reset each block is handed out once, in and outside of inference mode",
    upstream_pr=6091,
    upstream_commit="d04e7a0ba77d5ee14a7584d22379579fac94fb66",
    upstream_date="2026-07-30",
    fixed_in="0.20.0",
    releases=">=0.14,<0.20",
    removal="no supported release is older than 0.20.0",
    updated="2026-11-24",
    target=f"{CONTEXTS}.dynamic_context:DynamicInferenceContext.reset",
    variants=(
        Variant("0.14", HUNKS.of("0.14")),
        Variant("0.15", HUNKS.of("0.15")),
        Variant("0.16", HUNKS.of("0.16")),
        Variant("0.17", HUNKS.of("0.17")),
        Variant("0.18", HUNKS.of("0.18")),
    ),
    told_by=(KV_BLOCKS,),
)
