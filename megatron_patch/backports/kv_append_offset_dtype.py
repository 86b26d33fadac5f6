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

from ..model import Family, Kind, Known, Patch, Substitute

CONTEXTS = "megatron.core.inference.contexts"
CONTEXT = f"{CONTEXTS}.dynamic_context:DynamicInferenceContext"
GPU_VIEW = f"{CONTEXTS}.gpu_view:ContextGPUView.__init__"


def _widen(target: str, buffer: str, prefix: str, digest: str) -> tuple[Substitute, ...]:
    """One field of 64 bits more, and one of 32 bits less; names begin with ``prefix``."""
    offset, wide, narrow = (
        f"{prefix}{name}" for name in ("off", "tok_int64_bytes", "tok_int32_bytes")
    )
    field = f"""
self.token_to_block_idx = {buffer}[{offset} : {offset} + {narrow}].view(torch.int32)
{offset} += {narrow}
"""
    line = f"self.token_to_block_idx = {buffer}[{offset} : {offset} + {wide}].view(torch.int64)"
    if len(line) > 92:  # as Megatron's source is formatted
        line = line.replace("(torch.int64)", "(\n    torch.int64\n)")
    wide_field = f"""
# In 64 bits: it is multiplied with the elements of a block.
{line}
{offset} += {wide}
"""
    return (
        Substitute(target, f"2 * {wide}", f"3 * {wide}", digest),
        Substitute(target, f"4 * {narrow}", f"3 * {narrow}", digest),
        Substitute(target, field, wide_field, digest),
    )


def _family(releases: str, context_digest: str, view_digest: str) -> Family:
    initialize = f"{CONTEXT}.initialize_all_tensors"
    return Family(
        releases,
        (
            *_widen(initialize, "self._cpu_bookkeeping_buf", "_", context_digest),
            *_widen(GPU_VIEW, "self._buf", "", view_digest),
        ),
    )


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
    # Releases without it have no copy of the bookkeeping on the device, and 64 bits.
    target=f"{CONTEXT}.transfer_bookkeeping_to_gpu",
    families=(
        _family("0.18.0 to 0.18.2", "2fc0e47ca3deca8d", "7b4d97881c5764d6"),
        _family("main at 878228fd0f", "d11e1cec3df6aac4", "7b4d97881c5764d6"),
        _family("main at 342dd59a52", "107e9596b9693de6", "329380d61d69161c"),
    ),
    upstreamed=(
        Known(GPU_VIEW, "ba3f8d6745b8d84b", "main with #4855"),
        Known(GPU_VIEW, "e4cd318514c79c86", "0.19.0 to 0.19.2"),
        Known(GPU_VIEW, "2b2b16a1f6efd587", "main at ee3864907a (#5995)"),
        Known(GPU_VIEW, "5ce02211d9eb9cce", "main on 2026-08-22"),
    ),
)
