"""Counts what the fuzz tests tried, and says so at the end of the run."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from megatron_patch.testing.version import core_version


@dataclass
class Census:
    """Mutants by their texts, so that each counts once."""

    changed: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    neutral: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    edited: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    equal: int = 0

    def __str__(self) -> str:
        changed, neutral, edited = (
            sum(map(len, texts.values())) for texts in (self.changed, self.neutral, self.edited)
        )
        return (
            f"fuzz: megatron-core {core_version()}: "
            f"{changed} changed mutants refused; {neutral} neutral ones recognised, and "
            f"{edited} more edited and compiled; {self.equal} discarded as equal"
        )


@pytest.fixture(autouse=True, scope="module")
def no_garbage_is_searched_for() -> Iterator[None]:
    """Syntax trees are no garbage: searching them for some takes a third of the time."""
    gc.disable()
    yield
    gc.enable()


CENSUS = pytest.StashKey[Census]()


@pytest.fixture(scope="session")
def census(request: pytest.FixtureRequest) -> Census:
    """Counts of the session."""
    return request.config.stash.setdefault(CENSUS, Census())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    census = terminalreporter.config.stash.get(CENSUS, None)
    if census is not None:
        terminalreporter.write_line(str(census))
