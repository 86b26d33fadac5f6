"""What became of each test, and which tests end otherwise with patches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .intended import Intended

# From good to bad: of several ranks, the worst counts. A test that one rank skips was run.
ORDER = ("skipped", "xfailed", "passed", "xpassed", "failed", "timeout", "crashed")
BAD = frozenset({"failed", "timeout", "crashed"})
NOT_RUN = "not run"


@dataclass(frozen=True)
class Result:
    """What became of a test: `outcome` is one of `ORDER`.

    `kind` is the type of the exception, and `message` the end of its traceback, of the rank that
    decided.
    """

    outcome: str
    kind: str = ""
    message: str = ""
    seconds: float = 0.0
    rank: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value not in ("", 0)}


def worst(results: Iterable[Result]) -> Result:
    """The result of a test from those of its ranks, of which there is at least one."""
    return max(results, key=lambda result: ORDER.index(result.outcome))


@dataclass(frozen=True)
class Difference:
    """A test that did not end alike. `change` is one of:

    - `worse`: fails with patches only, in whatever way;
    - `better`: fails without patches only;
    - `other`: anything else, such as a test that is skipped, or fails in another way;
    - `not run`: one side has no result.
    """

    test: str
    unpatched: str
    patched: str
    change: str
    intended: str | None = None
    """Why this is as it should be, from the reviewed list."""

    @property
    def wrong(self) -> bool:
        """Whether it counts against the patches."""
        return self.change == "worse" and self.intended is None


@dataclass(frozen=True)
class Comparison:
    """What two runs of the same tests have in common, and what not."""

    differences: list[Difference]
    stale: list[str]
    """Entries of the reviewed list for tests that ended alike."""

    @property
    def wrong(self) -> list[Difference]:
        return [difference for difference in self.differences if difference.wrong]

    @property
    def incomplete(self) -> bool:
        """Whether a test ran without patches only, or with patches only."""
        return any(difference.change == NOT_RUN for difference in self.differences)


def compare(
    unpatched: Mapping[str, Result],
    patched: Mapping[str, Result],
    release: str,
    intended: Sequence[Intended],
) -> Comparison:
    """Compare the results, by test, without and with patches on `release`."""
    known = [entry for entry in intended if entry.applies_to(release)]
    used: set[Intended] = set()
    differences = []
    for test in {**unpatched, **patched}:
        before, after = unpatched.get(test), patched.get(test)
        change = _change(before, after)
        if change is None:
            continue
        entry = next((entry for entry in known if entry.matches(test)), None)
        if entry is not None:
            used.add(entry)
        differences.append(
            Difference(
                test,
                NOT_RUN if before is None else before.outcome,
                NOT_RUN if after is None else after.outcome,
                change,
                None if entry is None else entry.reason,
            )
        )
    stale = [
        entry.test
        for entry in known
        if entry not in used
        and any(
            entry.matches(test) and result.outcome in ("passed", "xpassed") and test in patched
            for test, result in unpatched.items()
        )
    ]
    return Comparison(differences, stale)


def _change(before: Result | None, after: Result | None) -> str | None:
    if before is None or after is None:
        return NOT_RUN
    if after.outcome in BAD and before.outcome not in BAD:
        return "worse"
    if before.outcome in BAD and after.outcome not in BAD:
        return "better"
    alike = (before.outcome, before.kind) == (after.outcome, after.kind)
    return None if alike else "other"


def summary(results: Mapping[str, Result], collected: Collection[str]) -> str:
    """For example `133 passed, 2 failed, 1 not run`."""
    counts = Counter(result.outcome for result in results.values())
    counts[NOT_RUN] = len(set(collected) - set(results))
    order = ("passed", *(name for name in reversed(ORDER) if name != "passed"), NOT_RUN)
    return ", ".join(f"{counts[name]} {name}" for name in order if counts[name]) or "no tests"
