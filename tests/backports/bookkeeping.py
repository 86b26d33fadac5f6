"""The numbers that a context keeps of its requests, and whether two contexts have the same."""

from __future__ import annotations

from typing import Any

import torch

from ..upstream import support


def state(context: Any) -> dict[str, object]:
    """The context's and its allocator's numbers, tensors as bytes; not the KV cache."""
    found: dict[str, object] = {}
    for owner in (context, support.allocator(context)):
        for name, value in vars(owner).items():
            key = f"{type(owner).__name__}.{name}"
            if isinstance(value, torch.Tensor) and name != "memory_buffer":
                found[key] = value.cpu().contiguous().flatten().view(torch.uint8).clone()
            elif value is None or isinstance(value, (bool, int)):
                found[key] = value
    return found


def assert_same(one: object, other: object, where: str = "") -> None:
    """Equal dicts, tensors or numbers."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_same(one[name], other[name], f"{where} {name}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert one.equal(other), where
    else:
        assert one == other, where


def start_alike(one: Any, other: Any) -> None:
    """Give two contexts the same contents, also in memory that was never written to."""
    for name, value in vars(one).items():
        if isinstance(value, torch.Tensor) and name != "memory_buffer":
            vars(other)[name].copy_(value)
