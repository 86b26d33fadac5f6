"""What ``import flash_mla`` finds: attention to the latents that Megatron caches, in PyTorch.

Megatron's dynamic engine calls it in decode steps of multi-latent attention.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor

from . import attention, module_standins


def get_mla_metadata(
    cache_seqlens: Tensor, num_heads_per_head_k: int, num_heads_k: int
) -> tuple[None, None]:
    """In place of the metadata by which a kernel shares its work; the stand-in has no kernel."""
    return None, None


def flash_mla_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    head_dim_v: int,
    tile_scheduler_metadata: None,
    num_splits: None,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> tuple[Tensor, None]:
    """Attention of a few new tokens per sequence over cached latents.

    Args:
        q: (batch, tokens_per_sequence, heads, head_dim).
        k_cache: (num_blocks, block_size, 1, head_dim), whose first ``head_dim_v`` numbers are the
            values.
        block_table, cache_seqlens, softmax_scale, causal: as in
            :func:`.attention.flash_attn_with_kvcache`.

    Returns:
        (batch, tokens_per_sequence, heads, head_dim_v), dtype of ``q``, and None in place of the
        log-sum-exp.
    """
    return (
        attention.flash_attn_with_kvcache(
            q,
            k_cache,
            k_cache[..., :head_dim_v],
            cache_seqlens=cache_seqlens,
            block_table=block_table,
            softmax_scale=softmax_scale,
            causal=causal,
        ),
        None,
    )


def installed() -> AbstractContextManager[None]:
    """Have ``import flash_mla`` find the stand-ins."""
    functions = (flash_mla_with_kvcache, get_mla_metadata)
    contents = {function.__name__: function for function in functions}
    module = module_standins.module("flash_mla", __doc__, contents)
    return module_standins.importable({"flash_mla": module})
