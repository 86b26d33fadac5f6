"""Where two records differ."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MISSING = "(missing)"


@dataclass(frozen=True)
class Difference:
    """One place of two records."""

    path: str
    left: Any
    right: Any

    @property
    def kind(self) -> str:
        """The path without numbers."""
        return re.sub(r"\[\d+\]", "[]", self.path)

    def __str__(self) -> str:
        return f"{self.path}: {_short(self.left)} -> {_short(self.right)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def differences(left: Any, right: Any, path: str = "") -> list[Difference]:
    """All places where ``left`` and ``right`` differ: numbers bit for bit, NaN is itself."""
    return list(_differences(left, right, path))


def _differences(left: Any, right: Any, path: str) -> Iterator[Difference]:
    if isinstance(left, dict) and isinstance(right, dict):
        for name in sorted({*left, *right}):
            inner = f"{path}.{name}" if path else name
            yield from _differences(left.get(name, MISSING), right.get(name, MISSING), inner)
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from _differences(one, other, f"{path}[{index}]")
    elif type(left) is not type(right) or (left != right and not (left != left and right != right)):
        yield Difference(path, left, right)
