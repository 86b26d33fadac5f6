"""Refuse what flash-attn would refuse, and what :mod:`.attention` does not stand in for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import graphs


def refuse(function: str, **arguments: Any) -> None:
    """Refuse arguments, by name, that are not at their "off" value and would be ignored."""
    for name, value in arguments.items():
        if value is not None and (isinstance(value, Tensor) or value):
            raise NotImplementedError(
                f"{function}: the argument {name!r} is not stood in for; use flash-attn itself"
            )


def expect_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise if a tensor has another shape."""
    if tuple(tensor.shape) != shape:
        raise RuntimeError(f"{name} must have shape {shape}, not {tuple(tensor.shape)}")


def check_lengths(name: str, limit: int, lengths: Tensor) -> None:
    """Raise if a length is over the limit. On a CPU only: on a CUDA device it would wait."""

    def check(lengths: Tensor) -> None:
        if int(lengths.max()) > limit:
            raise RuntimeError(f"a length of {int(lengths.max())} is over {name}, {limit}")

    if not lengths.is_cuda and lengths.numel():
        graphs.on_host(check, lengths)


def check_blocks(block_table: Tensor, k_lengths: Tensor, num_blocks: int, block_size: int) -> None:
    """Raise if a block that a row has keys in is not one of the cache. On a CPU only."""
    first_token = torch.arange(block_table.shape[1]) * block_size
    used = first_token < k_lengths[:, None]
    wrong = used & ((block_table < 0) | (block_table >= num_blocks))
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise RuntimeError(
            f"block_table[{row}, {column}] is {int(block_table[row, column])}, which is not "
            f"one of the {num_blocks} blocks of the cache, but row {row} has "
            f"{int(k_lengths[row])} keys in blocks of {block_size}"
        )
