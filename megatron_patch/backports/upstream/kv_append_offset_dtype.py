"""Keep the KV block of each token in 64 bits (upstream PR #4855).

The kernel that appends to the KV cache multiplies the block of a token with the elements of a
block, in the block's integer type. 0.18 keeps blocks in 32 bits: where one layer's keys have more
than 2**31 elements (4 GiB in bf16), the offsets of the blocks behind wrap. Their keys and values
are written in front of the layer's cache: an illegal memory access, or, over those of other layers,
wrong tokens. The last blocks are the first to be handed out. Releases before 0.18 have 64 bits.

What differs from upstream's commit e513ec409d: only ``token_to_block_idx`` changes, which costs
four bytes a token in the step's copy to the device. It stands behind two fields of 64 bits, on both
sides of that copy, so that everything stays aligned without padding.

Not covered: the rest of e513ec409d, the same change for the states of decoding requests in hybrid
models (``mamba_batch_indices_decode``); contexts that were made before the patch was applied.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

CONTEXTS = "megatron.core.inference.contexts"

CONTEXT = f"{CONTEXTS}.dynamic_context:DynamicInferenceContext"

GPU_VIEW = f"{CONTEXTS}.gpu_view:ContextGPUView.__init__"

KV_APPEND_OFFSET_DTYPE = Patch(
    id="kv-append-offset-dtype",
    kind=Kind.CORRECTNESS,
    summary="Keep the KV block of each token in 64 bits, so that offsets do not overflow",
    symptom=(
        "with a KV cache of more than 8 GiB for each layer (bf16), illegal memory accesses or "
        "wrong tokens from the first request on"
    ),
    outcome="offsets of 64 bits",
    upstream_pr=4855,
    upstream_commit="e513ec409d981cbfc9a6572574eac4180e8dd2d8",
    upstream_date="2026-06-03",
    fixed_in="0.19.0",
    releases=">=0.18,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-24",
    target=f"{CONTEXT}.transfer_bookkeeping_to_gpu",
    variants=(Variant("0.18", HUNKS.of("0.18")),),
    told_by=(GPU_VIEW,),
)
