"""What flash-attn does with new tokens before attention: rotate them, and append to the cache.

In plain PyTorch, like :mod:`.attention`, for where flash-attn cannot run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import check_lengths, expect_shape, refuse


def apply_rotary_emb(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, **others: object
) -> Tensor:
    """In place of ``flash_attn.layers.rotary.apply_rotary_emb``.

    Args:
        x: (batch, tokens, heads, head_dim). The first token stands at position 0.
        cos, sin: (positions, rotated_dim / 2), for at least as many positions as tokens.
        interleaved: an even dimension is rotated with the next one, not with the one that is half
            of ``rotated_dim`` further on.

    Returns:
        The shape and dtype of ``x``, which is not changed.

    Raises:
        NotImplementedError: for an argument that is not stood in for.
    """
    refuse("apply_rotary_emb", **others)
    positions = torch.arange(x.shape[1], device=x.device)
    return rotated(x, cos, sin, positions.expand(x.shape[0], -1), interleaved)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """``x``, rotated by ``cos`` and ``sin`` at ``positions``, (batch, tokens) integers.

    The other arguments, and what is returned, are as in :func:`apply_rotary_emb`.
    """
    half = cos.shape[-1]
    cosine, sine = (table[positions][:, :, None] for table in (cos, sin))
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    one, other = x[..., first], x[..., second]
    result = x.clone()
    result[..., first] = one * cosine - other * sine
    result[..., second] = one * sine + other * cosine
    return result


def rotated_behind(
    q: Tensor,
    k: Tensor,
    lengths: Tensor,
    tables: tuple[Tensor, Tensor],
    interleaved: bool,
    in_order: bool,
) -> tuple[Tensor, Tensor]:
    """Queries and keys of tokens that come behind the last ones of their sequences, rotated.

    Args:
        q, k: (batch, tokens, heads, head_dim), of any number of tokens and heads each.
        lengths: (batch,) integers, tokens that each sequence has already.
        tables: ``cos`` and ``sin``, as in :func:`apply_rotary_emb`.
        in_order: each query is at the position after the one before; otherwise all are at the
            position of the first, as in flash-attn without mask and window.
    """
    rotated_keys = rotated(k, *tables, _positions(lengths, k.shape[1]), interleaved)
    positions = _positions(lengths, q.shape[1])
    if not in_order:
        positions = positions[:, :1].expand_as(positions)
    return rotated(q, *tables, positions, interleaved), rotated_keys


def append(cache: Tensor, new: Tensor, lengths: Tensor) -> None:
    """Write the ``new`` tokens of each sequence behind its last ones, in place.

    Args:
        cache: (batch, cache_length, heads, head_dim).
        new: (batch, tokens, heads, head_dim).
        lengths: (batch,) integers, tokens of each sequence that are in the cache.

    Raises:
        RuntimeError: shapes that do not fit; on a CPU also where the cache is full.
    """
    batch, tokens = new.shape[:2]
    expect_shape("the cache", cache, (batch, cache.shape[1], *new.shape[2:]))
    expect_shape("cache_seqlens", lengths, (batch,))
    check_lengths("the cache length", cache.shape[1], lengths + tokens)
    rows = torch.arange(batch, device=new.device)[:, None]
    cache[rows, _positions(lengths, tokens)] = new


def _positions(lengths: Tensor, tokens: int) -> Tensor:
    """(batch, tokens): the positions of the next tokens of sequences of these ``lengths``."""
    return lengths[:, None] + torch.arange(tokens, device=lengths.device)
