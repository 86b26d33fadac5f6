"""Attention over batches of sequences that are padded to one length, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def visible(
    q: Tensor,
    k: Tensor,
    q_lengths: Tensor,
    k_lengths: Tensor,
    causal: bool,
    window_size: tuple[int, int],
) -> Tensor:
    """Which keys each query of a padded batch sees.

    Args:
        q: (batch, queries, ...).
        k: (batch, keys, ...).
        q_lengths, k_lengths: (batch,) integers, without the padding.
        causal, window_size: as in :func:`.attention.flash_attn_varlen_func`.

    Returns:
        (batch, queries, keys) bool.
    """
    query = torch.arange(q.shape[1], device=q.device)
    key = torch.arange(k.shape[1], device=q.device)
    present = key < k_lengths[:, None]
    visible = present[:, None, :] & (query < q_lengths[:, None])[:, :, None]
    # The last query of a sequence is at the position of its last key, however long either is.
    own_key = (k_lengths - q_lengths)[:, None, None] + query[:, None]
    left, right = window_size
    if causal:
        right = 0 if right < 0 else min(right, 0)
    if left >= 0:
        visible = visible & (key >= own_key - left)
    if right >= 0:
        visible = visible & (key <= own_key + right)
    return visible


def attend(
    q: Tensor, k: Tensor, v: Tensor, k_lengths: Tensor, visible: Tensor, scale: float | None
) -> Tensor:
    """Attention over padded batches.

    ``q`` is (batch, queries, heads, head_dim), ``k`` and ``v`` (batch, keys, kv_heads, head_dim),
    the lengths (batch,) integers. Returns the shape and dtype of ``q``.
    """
    sees_nothing = ~visible.any(dim=-1, keepdim=True)
    # What lies behind the last key was perhaps never written. A weight of zero does not keep a
    # NaN or infinity there out of the sum, so it has to be overwritten.
    absent = (torch.arange(k.shape[1], device=q.device) >= k_lengths[:, None])[:, :, None, None]
    heads = q.shape[2]
    k, v = (_repeated(x.masked_fill(absent, 0), heads) for x in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        # The softmax of a row that sees nothing is NaN: let it see everything, and drop it below.
        attn_mask=(visible | sees_nothing)[:, None],
        scale=scale,
    )
    result: Tensor = out.transpose(1, 2).masked_fill(sees_nothing[..., None], 0)
    return result


def log_sums(q: Tensor, k: Tensor, visible: Tensor, scale: float | None) -> Tensor:
    """(batch, heads, queries) float32: the log-sum-exp of the scores of each row."""
    k = _repeated(k, q.shape[2])
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float())
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    sums: Tensor = scores.masked_fill(~visible[:, None], -torch.inf).logsumexp(dim=-1)
    return sums.masked_fill(~visible.any(dim=-1)[:, None], torch.inf)


def _repeated(x: Tensor, heads: int) -> Tensor:
    """Keys or values of groups of heads, for each of the ``heads``."""
    groups = heads // x.shape[2]
    return x if groups == 1 else x.repeat_interleave(groups, dim=2)
