"""The two flash-attn functions that Megatron's dynamic engine calls, in plain PyTorch.

They stand in for flash-attn where it cannot run. They run on any device and in any floating-point
dtype, and never wait for a CUDA device, so that a decode step can be captured in a CUDA graph.
Memory use is that of a materialised copy of the keys and values of the batch: fine for tests,
not for production.

On a CPU, where looking at values costs nothing, they also check what a kernel would trust: a
request whose visible part of the block table points outside the cache is an error here, and an
out-of-bounds read there. Where a CUDA graph is stood in for, each replay checks it again.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import graphs
from .arguments import check_blocks, check_lengths, expect_shape, refuse


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Attention of sequences of different lengths, packed one after the other.

    Args:
        q: (total_q, heads, head_dim). Rows after ``cu_seqlens_q[-1]`` are padding.
        k, v: (total_k, kv_heads, head_dim), or, with a block table,
            (num_blocks, block_size, kv_heads, head_dim).
        cu_seqlens_q, cu_seqlens_k: (batch + 1,) int32, cumulative lengths, starting with 0.
        max_seqlen_q: at least the longest query. Sets how much memory is used.
        max_seqlen_k: at least the longest key sequence.
        softmax_scale: defaults to head_dim ** -0.5.
        causal: the last query of a sequence sees all its keys, the one before it one less, and
            so on.
        window_size: keys seen to the left and right of a query's own position; -1: all.
        block_table: (batch, max_blocks_per_sequence) int32, the cache blocks of each sequence.
        deterministic: no effect, there is no backward pass.
        return_attn_probs: return three tensors. The name is flash-attn's own, for the third.

    Returns:
        (total_q, heads, head_dim), dtype of ``q``. Zero in padding and in rows that see no key.
        With ``return_attn_probs`` also (heads, total_q) float32, the logarithm of the sum of the
        exponentials of each row's scores, infinite in padding and in rows that see no key; and an
        empty tensor, as flash-attn returns without dropout.

    Raises:
        NotImplementedError: for an argument that is not stood in for.
        RuntimeError: shapes that do not fit, as flash-attn does; on a CPU also for values.
    """
    refuse(
        "flash_attn_varlen_func",
        dropout_p=dropout_p,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
    )
    total_q, batch = q.shape[0], cu_seqlens_q.shape[0] - 1
    expect_shape("cu_seqlens_k", cu_seqlens_k, (batch + 1,))
    if batch == 0 or total_q == 0:
        nothing = torch.zeros_like(q)
        return (nothing, _no_sums(q), q.new_empty(0)) if return_attn_probs else nothing
    if max_seqlen_q == 1 and q.shape[1] > k.shape[-2] and max(window_size) < 0:
        # flash-attn then takes `q` for one token of each sequence, whatever the lengths are.
        expect_shape("q", q, (batch, *q.shape[1:]))
    q_starts, k_starts = cu_seqlens_q[:-1], cu_seqlens_k[:-1]
    q_lengths, k_lengths = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    check_lengths("max_seqlen_q", max_seqlen_q, q_lengths)

    if block_table is None:
        check_lengths("max_seqlen_k", max_seqlen_k, k_lengths)
        rows = _packed_rows(k_starts, max_seqlen_k, k.shape[0])
        keys, values = k[rows], v[rows]
    else:
        keys, values = _paged(k, v, block_table, k_lengths)
    queries = q[_packed_rows(q_starts, max_seqlen_q, total_q)]
    visible = _visible(queries, keys, q_lengths, k_lengths, causal, window_size)
    out = _attend(queries, keys, values, k_lengths, visible, softmax_scale)

    # Back from (sequence, position) to the packed order. A row after the last sequence has none.
    token = torch.arange(total_q, dtype=cu_seqlens_q.dtype, device=q.device)
    sequence = torch.searchsorted(cu_seqlens_q[1:].contiguous(), token, right=True)
    padding = sequence == batch
    sequence = sequence.clamp(max=batch - 1)
    position = (token - q_starts[sequence]).clamp(max=max_seqlen_q - 1)
    packed = out[sequence, position].masked_fill(padding[:, None, None], 0)
    if not return_attn_probs:
        return packed
    sums = _log_sums(queries, keys, visible, softmax_scale)[sequence, :, position]
    return packed, sums.masked_fill(padding[:, None], torch.inf).T, q.new_empty(0)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: Tensor | int | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of a few new tokens per sequence over a cache that already holds their keys.

    Args:
        q: (batch, tokens_per_sequence, heads, head_dim).
        k_cache, v_cache: (batch, cache_length, kv_heads, head_dim), or, with a block table,
            (num_blocks, block_size, kv_heads, head_dim). Not changed.
        cache_seqlens: (batch,) int32, keys of each sequence, those of ``q`` included. 0 for a
            padded row. Defaults to the whole cache.
        block_table: (batch, max_blocks_per_sequence) int32, the cache blocks of each sequence.
        softmax_scale, causal, window_size: as in :func:`flash_attn_varlen_func`.
        rotary_interleaved, num_splits: no effect.

    Returns:
        (batch, tokens_per_sequence, heads, head_dim), dtype of ``q``. Zero in rows that see no
        key. With ``return_softmax_lse`` also (batch, heads, tokens_per_sequence) float32, as the
        second tensor of :func:`flash_attn_varlen_func`.

    Raises:
        NotImplementedError: for an argument that is not stood in for, such as appending ``k``.
        RuntimeError: shapes that do not fit, as flash-attn does; on a CPU also for values.
    """
    refuse(
        "flash_attn_with_kvcache",
        k=k,
        v=v,
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        cache_batch_idx=cache_batch_idx,
        cache_leftpad=cache_leftpad,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
    )
    batch, tokens = q.shape[0], q.shape[1]
    capacity = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    if not isinstance(cache_seqlens, Tensor):
        length = capacity if cache_seqlens is None else cache_seqlens
        cache_seqlens = torch.full((batch,), length, dtype=torch.int32, device=q.device)
    expect_shape("cache_seqlens", cache_seqlens, (batch,))
    if block_table is None:
        expect_shape("k_cache", k_cache, (batch, *k_cache.shape[1:]))
        check_lengths("the cache length", capacity, cache_seqlens)
        keys, values = k_cache, v_cache
    else:
        keys, values = _paged(k_cache, v_cache, block_table, cache_seqlens)
    q_lengths = torch.full_like(cache_seqlens, tokens)
    visible = _visible(q, keys, q_lengths, cache_seqlens, causal, window_size)
    out = _attend(q, keys, values, cache_seqlens, visible, softmax_scale)
    return (out, _log_sums(q, keys, visible, softmax_scale)) if return_softmax_lse else out


def _visible(
    q: Tensor,
    k: Tensor,
    q_lengths: Tensor,
    k_lengths: Tensor,
    causal: bool,
    window_size: tuple[int, int],
) -> Tensor:
    """(batch, queries, keys): which keys each query of a padded batch sees."""
    query = torch.arange(q.shape[1], device=q.device)
    key = torch.arange(k.shape[1], device=q.device)
    present = key < k_lengths[:, None]
    visible = present[:, None, :] & (query < q_lengths[:, None])[:, :, None]
    # The last query of a sequence stands at its last key, however long either is.
    own_key = (k_lengths - q_lengths)[:, None, None] + query[:, None]
    left, right = window_size
    if causal:
        right = 0 if right < 0 else min(right, 0)
    if left >= 0:
        visible = visible & (key >= own_key - left)
    if right >= 0:
        visible = visible & (key <= own_key + right)
    return visible


def _attend(
    q: Tensor, k: Tensor, v: Tensor, k_lengths: Tensor, visible: Tensor, scale: float | None
) -> Tensor:
    """Attention over padded batches.

    ``q`` is (batch, queries, heads, head_dim), ``k`` and ``v`` (batch, keys, kv_heads, head_dim),
    the lengths (batch,). Returns the shape of ``q``.
    """
    sees_nothing = ~visible.any(dim=-1, keepdim=True)
    # What lies behind the last key was perhaps never written. A weight of zero does not keep a
    # NaN or infinity there out of the sum, so it has to be overwritten.
    absent = (torch.arange(k.shape[1], device=q.device) >= k_lengths[:, None])[:, :, None, None]
    groups = q.shape[2] // k.shape[2]
    k = k.masked_fill(absent, 0).repeat_interleave(groups, dim=2)
    v = v.masked_fill(absent, 0).repeat_interleave(groups, dim=2)
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


def _log_sums(q: Tensor, k: Tensor, visible: Tensor, scale: float | None) -> Tensor:
    """(batch, heads, queries) float32: the log-sum-exp of the scores of each row."""
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float())
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    sums: Tensor = scores.masked_fill(~visible[:, None], -torch.inf).logsumexp(dim=-1)
    return sums.masked_fill(~visible.any(dim=-1)[:, None], torch.inf)


def _no_sums(q: Tensor) -> Tensor:
    """(heads, total_q): the log-sum-exp of a batch without sequences."""
    return torch.full((q.shape[1], q.shape[0]), torch.inf, device=q.device)


def _packed_rows(starts: Tensor, width: int, total: int) -> Tensor:
    """(batch, width) indices of the packed rows of each sequence; past its end, any valid row."""
    offsets = torch.arange(width, device=starts.device)
    return (starts[:, None] + offsets).clamp(max=total - 1)


def _paged(
    k_cache: Tensor, v_cache: Tensor, block_table: Tensor, k_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and values, each (batch, max_blocks * block_size, kv_heads, head_dim), in order."""
    num_blocks, block_size = k_cache.shape[:2]
    expect_shape("block_table", block_table, (k_lengths.shape[0], block_table.shape[1]))
    check_lengths("the block table's width in tokens", block_table.shape[1] * block_size, k_lengths)
    if not block_table.is_cuda:
        check = functools.partial(check_blocks, num_blocks=num_blocks, block_size=block_size)
        graphs.on_host(check, block_table, k_lengths)
    # Unused entries are often -1.
    blocks = block_table.clamp(0, num_blocks - 1)
    return k_cache[blocks].flatten(1, 2), v_cache[blocks].flatten(1, 2)
