"""The two flash-attn functions that Megatron's engines call, in plain PyTorch.

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
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from . import graphs
from .arguments import check_blocks, check_lengths, expect_shape, refuse
from .padded_attention import attend, log_sums, visible
from .rotary import append, rotated_behind

P = ParamSpec("P")
R = TypeVar("R")


def _unseen(function: Callable[P, R]) -> Callable[P, R]:
    """The function, of which no mode of :mod:`torch.overrides` sees the operators.

    It names no CUDA device and asks for no transfer: :class:`.standins.CudaOnCpu` would only take
    its time.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return call


@_unseen
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
    seen = visible(queries, keys, q_lengths, k_lengths, causal, window_size)
    out = attend(queries, keys, values, k_lengths, seen, softmax_scale)

    # Back from (sequence, position) to the packed order. A row after the last sequence has none.
    token = torch.arange(total_q, dtype=cu_seqlens_q.dtype, device=q.device)
    sequence = torch.searchsorted(cu_seqlens_q[1:].contiguous(), token, right=True)
    padding = sequence == batch
    sequence = sequence.clamp(max=batch - 1)
    position = (token - q_starts[sequence]).clamp(max=max_seqlen_q - 1)
    packed = out[sequence, position].masked_fill(padding[:, None, None], 0)
    if not return_attn_probs:
        return packed
    sums = log_sums(queries, keys, seen, softmax_scale)[sequence, :, position]
    return packed, sums.masked_fill(padding[:, None], torch.inf).T, q.new_empty(0)


@_unseen
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
    """Attention of a few new tokens per sequence over a cache that holds their keys, or gets them.

    Args:
        q: (batch, tokens_per_sequence, heads, head_dim).
        k_cache, v_cache: (batch, cache_length, kv_heads, head_dim), or, with a block table,
            (num_blocks, block_size, kv_heads, head_dim). Changed only with ``k`` and ``v``.
        k, v: (batch, tokens_per_sequence, kv_heads, head_dim), which are then appended to the
            first rows of the caches. Without a block table only.
        rotary_cos, rotary_sin: with ``k``; (positions, rotated_dim / 2), by which ``q`` and ``k``
            are rotated first, for the positions where they stand.
        cache_seqlens: (batch,) int32, keys of each sequence, those of ``q`` included unless they
            are in ``k``. 0 for a padded row. Defaults to the whole cache; with ``k`` it is needed.
        block_table: (batch, max_blocks_per_sequence) int32, the cache blocks of each sequence.
        softmax_scale, causal, window_size: as in :func:`flash_attn_varlen_func`.
        rotary_interleaved: as ``interleaved`` of :func:`.rotary.apply_rotary_emb`.
        num_splits: no effect.

    Returns:
        (batch, tokens_per_sequence, heads, head_dim), dtype of ``q``. Zero in rows that see no
        key. With ``return_softmax_lse`` also (batch, heads, tokens_per_sequence) float32, as the
        second tensor of :func:`flash_attn_varlen_func`.

    Raises:
        NotImplementedError: for an argument that is not stood in for, such as appending ``k`` to
            blocks.
        RuntimeError: shapes that do not fit, as flash-attn does; on a CPU also for values.
    """
    refuse(
        "flash_attn_with_kvcache",
        cache_batch_idx=cache_batch_idx,
        cache_leftpad=cache_leftpad,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
    )
    if k is not None and v is not None:
        refuse("flash_attn_with_kvcache with new keys", block_table=block_table)
        if not isinstance(cache_seqlens, Tensor):
            raise RuntimeError("cache_seqlens must be a tensor where keys are appended")
        if rotary_cos is not None and rotary_sin is not None:
            in_order = causal or max(window_size) >= 0
            tables = (rotary_cos, rotary_sin)
            q, k = rotated_behind(q, k, cache_seqlens, tables, rotary_interleaved, in_order)
        k_cache, v_cache = k_cache[: k.shape[0]], v_cache[: v.shape[0]]
        append(k_cache, k, cache_seqlens)
        append(v_cache, v, cache_seqlens)
        cache_seqlens = cache_seqlens + k.shape[1]
    else:
        refuse(
            "flash_attn_with_kvcache without new keys and values",
            k=k,
            v=v,
            rotary_cos=rotary_cos,
            rotary_sin=rotary_sin,
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
    seen = visible(q, keys, q_lengths, cache_seqlens, causal, window_size)
    out = attend(q, keys, values, cache_seqlens, seen, softmax_scale)
    return (out, log_sums(q, keys, seen, softmax_scale)) if return_softmax_lse else out


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
    """Keys and values, each (batch, tokens, kv_heads, head_dim), in order.

    As many tokens as the block table has room for; on a CPU, outside of a capture, no blocks that
    lie behind the last key of all.
    """
    num_blocks, block_size = k_cache.shape[:2]
    expect_shape("block_table", block_table, (k_lengths.shape[0], block_table.shape[1]))
    check_lengths("the block table's width in tokens", block_table.shape[1] * block_size, k_lengths)
    if not block_table.is_cuda:
        check = functools.partial(check_blocks, num_blocks=num_blocks, block_size=block_size)
        graphs.on_host(check, block_table, k_lengths)
        if not graphs.is_capturing():  # a replay may be of longer sequences
            longest = int(k_lengths.max()) if len(k_lengths) else 0
            block_table = block_table[:, : max(1, -(-longest // block_size))]
    # Unused entries are often -1.
    blocks = block_table.clamp(0, num_blocks - 1)
    keys, values = (
        cache.index_select(0, blocks.flatten()).view(len(blocks), -1, *cache.shape[2:])
        for cache in (k_cache, v_cache)
    )
    return keys, values
