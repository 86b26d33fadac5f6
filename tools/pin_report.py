"""What a move from one Megatron-Core to another means for the series.

    python tools/pin_report.py 0.18.2 0.19.2
    python tools/pin_report.py 0.19.2 ~/src/Megatron-LM

Says which targets of the series changed, appeared or went, and what becomes of each backport. OLD
and NEW are released versions, whose wheels pip downloads, or directories with a Megatron tree
(write `./0.19.2` for a directory of such a name). Everything is read as syntax trees: nothing of
Megatron is imported or executed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from megatron_patch import inspection  # noqa: E402
from megatron_patch.backports import SERIES  # noqa: E402
from megatron_patch.errors import NotMegatronError, TargetError  # noqa: E402
from megatron_patch.inspection import Finding  # noqa: E402
from megatron_patch.model import Patch  # noqa: E402
from megatron_patch.source_tree import SourceTree  # noqa: E402
from megatron_patch.verdicts import find_definition  # noqa: E402
from tools import pins  # noqa: E402

CHANGES = ("changed", "appeared", "gone", "the same")


@dataclass(frozen=True)
class TargetChange:
    """One target. `old` and `new` are digests, `None` where there is no such definition."""

    target: str
    change: str  #: one of `CHANGES`
    old: str | None
    new: str | None


@dataclass(frozen=True)
class Backport:
    """One backport: what `megatron-patch check` says of it on the two trees."""

    old: Finding
    new: Finding

    @property
    def outcome(self) -> str:
        """What the move means for the backport; `drifted` is for a maintainer to look at."""
        old, new = self.old.verdict, self.new.verdict
        if new == "drifted":
            return "drifted"
        if old == new:
            return "as before"
        if new == "upstreamed":
            return "now upstreamed"
        return "newly applicable" if new == "applicable" else "no longer applicable"

    def __str__(self) -> str:
        moved = f"{self.old.id}: {self.old.verdict} -> {self.new.verdict}"
        detail = str(self.new).partition("\n")[2] if self.outcome != "as before" else ""
        return f"  {moved}" + "".join(f"\n  {line}" for line in detail.splitlines())


@dataclass(frozen=True)
class Report:
    """The targets and the backports of a series on two trees."""

    targets: tuple[TargetChange, ...]
    backports: tuple[Backport, ...]

    @property
    def drifted(self) -> list[str]:
        """The backports whose source in the new tree is not known."""
        return [entry.new.id for entry in self.backports if entry.outcome == "drifted"]

    def as_dict(self) -> dict[str, Any]:
        """In a form that `json.dumps` takes."""
        return {
            "targets": [asdict(target) for target in self.targets],
            "backports": [
                {
                    "id": entry.new.id,
                    "outcome": entry.outcome,
                    "old": entry.old.as_dict(),
                    "new": entry.new.as_dict(),
                }
                for entry in self.backports
            ],
        }

    def __str__(self) -> str:
        changes = [entry.change for entry in self.targets]
        counts = ", ".join(f"{changes.count(change)} {change}" for change in CHANGES)
        lines = [f"targets: {counts}"]
        lines += [
            f"  {entry.change:8}  {entry.target}  {entry.old or '-'} -> {entry.new or '-'}"
            for entry in self.targets
            if entry.old != entry.new
        ]
        outcomes = [entry.outcome for entry in self.backports]
        counts = ", ".join(f"{outcomes.count(name)} {name}" for name in dict.fromkeys(outcomes))
        return "\n".join([*lines, f"backports: {counts}", *map(str, self.backports)])


def compare(old: SourceTree, new: SourceTree, series: Sequence[Patch]) -> Report:
    """What the series finds in two trees."""
    return Report(
        tuple(_target(target, old, new) for target in targets(series)),
        tuple(
            Backport(_inspect(patch, old, series), _inspect(patch, new, series)) for patch in series
        ),
    )


def _inspect(patch: Patch, tree: SourceTree, series: Sequence[Patch]) -> Finding:
    """What `check` finds, with paths relative to the tree: a wheel is unpacked only meanwhile."""
    found = inspection.inspect(patch, tree, series=series)
    drifts = (
        replace(drift, file=drift.file and Path(drift.file).relative_to(tree.root).as_posix())
        for drift in found.drifts
    )
    return replace(found, drifts=tuple(drifts))


def targets(series: Sequence[Patch]) -> list[str]:
    """The targets that the records look at, sorted; without helpers that we add."""
    return sorted({target for patch in series for target in patch.targets})


def _target(target: str, old: SourceTree, new: SourceTree) -> TargetChange:
    before, after = (_digest(target, tree) for tree in (old, new))
    if before == after:
        change = "the same"
    elif before is None:
        change = "appeared"
    else:
        change = "gone" if after is None else "changed"
    return TargetChange(target, change, before, after)


def _digest(target: str, tree: SourceTree) -> str | None:
    try:
        found = find_definition(target, tree.read)
        return None if found is None else found.digest
    except (SyntaxError, TargetError) as error:
        return f"unreadable ({error})"


def tree_of(text: str, cache: Path) -> AbstractContextManager[SourceTree]:
    """The tree of a version or in a directory. Raises `PinError` or `NotMegatronError`."""
    if pins.VERSION.fullmatch(text):
        return pins.source(text, cache)
    return nullcontext(SourceTree.at(Path(text)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Compare two Megatron-Core trees as the series sees them.",
        epilog="Exit status: 0; 1 when a backport is drifted in NEW, so that a maintainer has to "
        "look; 2 when OLD or NEW cannot be had.",
    )
    parser.add_argument("old", metavar="OLD", help="a released version, or a directory")
    parser.add_argument("new", metavar="NEW", help="a released version, or a directory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    pins.add_cache_option(parser)
    options = parser.parse_args(arguments)
    try:
        with tree_of(options.old, options.cache) as old, tree_of(options.new, options.cache) as new:
            report = compare(old, new, SERIES)
    except (pins.PinError, NotMegatronError) as error:
        print(f"pin_report: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"old": options.old, "new": options.new, **report.as_dict()}, indent=2))
    else:
        print(f"megatron-core {options.old} -> {options.new}\n{report}")
    return int(bool(report.drifted))


if __name__ == "__main__":
    sys.exit(main())
