"""A report as text for a terminal of 80 columns. Names and paths stay whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .. import folding
from ..differences import marked
from ..inspection import summary
from .changes import Change
from .collecting import Entry, Function, Report
from .groups import groups, reviewed
from .showing import shown


def text(report: Report) -> str:
    """All of the report, with a line end at its end."""
    return "".join(f"{shown(line)}\n" for line in _lines(report))


def _lines(report: Report) -> Iterator[str]:
    yield from _folded(f"megatron_patch report of {report.made}")
    yield from _folded(report.megatron, "    ")
    yield from _folded(summary(report.findings))
    yield from _heading("Environment")
    yield from _rows(report.environment)
    yield from _heading("Settings")
    yield from _rows(report.settings)
    for group in groups(report.entries):
        yield from _heading(f"{group.heading} ({len(group.entries)})")
        for entry in group.entries:
            yield from _entry(entry)
    yield from _heading("Functions that run patched code")
    for function in report.functions:
        yield from _function(function)
    if not report.functions:
        yield "none"


def _folded(line: str, hanging: str = "") -> list[str]:
    return folding.folded(shown(line), hanging)


def _heading(heading: str) -> Iterator[str]:
    yield from ("", heading, "=" * len(heading))


def _rows(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        yield from _folded(f"{name:{width}}{value}", " " * width)


def _entry(entry: Entry) -> Iterator[str]:
    head, *rest = str(entry.finding).splitlines()
    yield head
    yield from _folded(f"    {reviewed(entry)}: {entry.patch.summary}", "    ")
    for line in rest:
        yield from [line] if entry.finding.diff is not None else _folded(line, "    ")
    if entry.status is not None:
        line = f"in this process: {entry.status.state}: {entry.status.reason}"
        yield from _folded(f"    {line}", "    ")
    for change in entry.changes:
        yield from _change(change)


def _change(change: Change) -> Iterator[str]:
    yield from _folded(f"{change.place}: {change.name}", "    ")
    for line in change.lines:
        if line.sign == "@":
            yield f"@@ {line.text} @@"
        else:
            yield from marked(line.sign, [shown(line.text)])


def _function(function: Function) -> Iterator[str]:
    yield function.name
    yield from _folded(f"    {function.place}", "    ")
    yield from _folded(f"    {', '.join(function.patches)}", "    ")
