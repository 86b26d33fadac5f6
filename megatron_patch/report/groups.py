"""The order in which a report tells of the patches: what needs a look comes first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..states import UNHEALTHY, State
from ..verdicts import Verdict
from .collecting import Entry


@dataclass(frozen=True)
class Group:
    """Patches of which the same is to be said; ``name`` is a word for links."""

    name: str
    heading: str
    entries: tuple[Entry, ...]


HEADINGS = {
    "look": "Needs a look",
    "patched": "Will be patched",
    "upstreamed": "Has the change already",
    "nothing": "Nothing to patch",
    "off": "Off",
}
_BY_VERDICT = {
    Verdict.DRIFTED: "look",
    Verdict.APPLICABLE: "patched",
    Verdict.UPSTREAMED: "upstreamed",
    Verdict.NOT_APPLICABLE: "nothing",
}


def groups(entries: Sequence[Entry]) -> tuple[Group, ...]:
    """All groups that have a patch, in order."""
    headings = dict(HEADINGS)
    if any(entry.status is not None for entry in entries):  # a process has some of them already
        headings["patched"] = "Patched, or to be patched"
    found = ((name, _of(name, entries)) for name in headings)
    return tuple(Group(name, headings[name], those) for name, those in found if those)


def _of(name: str, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(entry for entry in entries if _group_of(entry) == name)


def _group_of(entry: Entry) -> str:
    state = None if entry.status is None else entry.status.state
    if state in UNHEALTHY:
        return "look"
    if state is State.DISABLED:
        return "off"
    return "off" if entry.finding.off is not None else _BY_VERDICT[entry.finding.verdict]


def reviewed(entry: Entry) -> str:
    """Who has reviewed the change, and which it is."""
    number = entry.patch.upstream_pr
    return f"{entry.patch.kind}, {entry.patch.origin}" + (f" #{number}" if number else "")
