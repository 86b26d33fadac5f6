"""Runs of the matrix in a process of tests, with patches that are planted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest

import megatron_patch
from megatron_patch import testing
from tools.differential import judging
from tools.differential.selections import NONE, PERFORMANCE

Change = tuple[Any, str, Callable[..., Any]]


class Planted:
    """In place of `Selections`: nothing is patched but what a test plants.

    ``changes`` has, by selection, attributes and what they are then.
    """

    def __init__(self, **changes: list[Change]) -> None:
        self.changes = changes

    @contextmanager
    def force(self, selection: str) -> Iterator[None]:
        with ExitStack() as stack:
            for name in {selection.partition(",")[0], *self._parts(selection)}:
                for owner, attribute, value in self.changes.get(name, ()):
                    stack.enter_context(mock.patch.object(owner, attribute, value))
            yield

    anew = force

    def applied(self, selection: str) -> list[str]:
        """No patch of the series is applied."""
        return []

    @staticmethod
    def _parts(selection: str) -> tuple[str, ...]:
        both = (PERFORMANCE, "correctness")
        return both if selection.partition(",")[0] == "all" else ()

    def runner(self) -> judging.Runner:
        return judging.runner(self)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _released(unpatched: None) -> None:
    """The released Megatron, in which tests plant what they want found."""


@pytest.fixture
def engine_class(device: Any) -> Any:
    from megatron_patch.testing.releases import engine_class

    return engine_class()


__all__ = ["NONE", "Planted", "megatron_patch", "testing"]
