"""Collect what a report says. Source is read, and nothing of Megatron is imported."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from .. import __version__, _engine
from .. import status as status_of_process
from ..differences import differences
from ..inspection import Finding, inspect_all
from ..judge import trees_kept
from ..model import Patch
from ..settings import ACCEPT, RECORDS, SELECTION, STRICT, Settings
from ..source_edits import source_patches
from ..source_tree import SourceTree
from ..sources import megatron_version
from ..states import PatchStatus
from .changes import Change, changes


@dataclass(frozen=True)
class Entry:
    """One patch: what it is for, what was found of it, and what it changes here."""

    patch: Patch
    finding: Finding
    changes: tuple[Change, ...]  #: in the order of its edits; none where it is not to be applied
    status: PatchStatus | None  #: what became of it in the process that was asked, if one was


@dataclass(frozen=True)
class Function:
    """One function whose code is not the release's: what all patches together make of it."""

    place: str  #: as that of a change
    name: str  #: dotted, in its module
    patches: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All that a report says; ``environment`` and ``settings`` are names with values."""

    made: str  #: when, ``YYYY-MM-DD HH:MM UTC``
    megatron: str  #: version and directory
    environment: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, str], ...]
    entries: tuple[Entry, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found, by patch."""
        return tuple(entry.finding for entry in self.entries)

    @property
    def functions(self) -> tuple[Function, ...]:
        """The functions that are not the release's, by file and line."""
        changes = [(change, entry.patch.id) for entry in self.entries for change in entry.changes]
        changes.sort(key=lambda found: (found[0].file, found[0].line, found[0].name))
        ids: dict[tuple[str, str], list[str]] = {}
        for change, patch in changes:
            ids.setdefault((change.place, change.name), []).append(patch)
        return tuple(Function(place, name, tuple(those)) for (place, name), those in ids.items())


def collected(
    tree: SourceTree,
    series: Sequence[Patch],
    shown: Collection[str],
    settings: Settings,
    *,
    given: str = "",
    against: SourceTree | None = None,
    states: Sequence[PatchStatus] = (),
) -> Report:
    """What there is to say of the patches with the ids ``shown`` on ``tree``.

    ``settings`` select those that are on, ``given`` is the list of ids of a command line, if that
    is where they are from. ``against`` is as for :func:`~..differences.differences`. ``states`` are
    those of a process. Raises ``SettingsError`` as :func:`~..judge.judge` does.
    """
    with trees_kept():
        explain = partial(differences, against=against)
        findings = inspect_all(tree, series, shown, settings, explain)
        on = settings.selected & frozenset(shown)
        made, _ = source_patches(tree, series, on, accepted=settings.accepted, partial=True)
        changed = {one.patch.id: changes(tree, one) for one in made}
    by_id = {patch.id: patch for patch in series}
    found = {entry.id: entry for entry in states}
    version = megatron_version(tree.read) or "of unknown version"
    where = str(tree.root.absolute())
    return Report(
        made=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        megatron=f"megatron-core {version} in {where}",
        environment=(
            ("megatron-core", f"{version}, in {where}"),
            ("torch", _version("torch") or "not installed"),
            ("Python", f"{platform.python_version()}, {sys.executable}"),
            ("system", platform.platform()),
            ("megatron_patch", f"{__version__}, in {Path(__file__).parents[1]}"),
        ),
        settings=_settings(os.environ, given),
        entries=tuple(
            Entry(by_id[f.id], f, changed.get(f.id, ()), found.get(f.id)) for f in findings
        ),
    )


def of_process() -> Report:
    """What there is to say of this process: its states, and the Megatron that it imports.

    Raises ``NotMegatronError`` when there is none, and ``SettingsError`` when the environment has
    come to say something that is not understood.
    """
    series = _engine.series
    ids = [patch.id for patch in series]
    settings = Settings.from_environment(series)
    return collected(SourceTree.installed(), series, ids, settings, states=status_of_process())


def _settings(environment: Mapping[str, str], given: str) -> tuple[tuple[str, str], ...]:
    names = (SELECTION, ACCEPT, STRICT, RECORDS)
    rows = tuple((name, environment.get(name) or "not set") for name in names)
    return (("ids of the command line", given), *rows) if given else rows


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
