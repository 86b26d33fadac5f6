"""Judge each patch against the source, apply it whole or not at all, and take it back.

Nothing here runs on a hot path: the functions that are put in place are plain functions.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import (
    ForeignPatchError,
    MegatronPatchError,
    MegatronPatchWarning,
    SettingsError,
    StrictModeError,
    TargetError,
)
from .importer import PostImportFinder, is_ready
from .model import UNHEALTHY, Family, Patch, PatchStatus, State, Target
from .settings import Settings
from .sources import megatron_version

if TYPE_CHECKING:
    import logging

    from .plan import Change

# What judges and compiles, `judge` and `plan`, and `logging` are imported by the first call that
# needs them: they are a third of the time that `import megatron_patch` would take, in processes
# without Megatron too.


def _logger() -> logging.Logger:
    import logging

    return logging.getLogger("megatron_patch")


class Record:
    """The state of one patch in this process."""

    def __init__(self, patch: Patch) -> None:
        self.patch = patch
        self.state = State.DISABLED
        self.reason = "not installed"
        self.changes: list[Change] = []
        self.warned: set[State] = set()


def modules_of(patch: Patch) -> set[str]:
    """The modules whose import can settle the patch."""
    targets = [edit.target for family in patch.families for edit in family.edits]
    return {Target.parse(target).module for target in (patch.target, *targets)}


class Engine:
    """The patches of one process. All methods are safe to call from several threads."""

    def __init__(self, series: Sequence[Patch]) -> None:
        self.records = {patch.id: Record(patch) for patch in series}
        self._applied: list[Record] = []
        self._settings = Settings()
        self._summarised = False
        self._lock = threading.RLock()
        self._finder = PostImportFinder(self._imported)

    def install(self, settings: Settings) -> None:
        """Select the patches, settle those whose modules are imported, wait for the others.

        Raises ``StrictModeError``, with everything taken back, when ``settings.strict`` and a
        selected patch is unhealthy, and likewise ``SettingsError`` when a digest of
        ``settings.accepted`` is not that of any target of its patch.
        """
        with self._lock:
            self._settings = settings
            out = [r for r in self.records.values() if r.patch.id not in settings.selected]
            for record in self._last_first(out):
                self._revert(record, "not selected by MEGATRON_PATCH")
            for record in self.records.values():
                # Also what failed before, it may not now, and what was on top of another patch.
                if record not in out and record not in self._applied:
                    record.state, record.reason = State.PENDING, _waiting(record.patch)
            selected = [r for r in self.records.values() if r.state is not State.DISABLED]
            self._finder.watch({m for record in selected for m in modules_of(record.patch)})
            try:
                self._settle()
            except (StrictModeError, SettingsError):
                self.uninstall()
                raise

    def uninstall(self) -> None:
        """Restore the original objects, except where somebody else's patch is on top of ours."""
        with self._lock:
            self._finder.stop()
            for record in self._last_first(list(self.records.values())):
                self._revert(record, "uninstalled")

    def status(self) -> tuple[PatchStatus, ...]:
        """One entry a patch, in the order of the series, looked up now."""
        with self._lock:
            self._settle(raising=False)
            return tuple(
                PatchStatus(
                    id=r.patch.id,
                    kind=r.patch.kind,
                    state=r.state,
                    reason=r.reason,
                    upstream_pr=r.patch.upstream_pr,
                    fixed_in=r.patch.fixed_in,
                )
                for r in self.records.values()
            )

    def _imported(self, name: str) -> None:
        """The code of a target module has just run, for the first time or again."""
        with self._lock:
            records = [r for r in self.records.values() if name in modules_of(r.patch)]
            for record in self._last_first(records):
                if record.state is not State.DISABLED:
                    for change in reversed(record.changes):
                        # A reload has made new classes; those of other modules are still ours.
                        if vars(change.owner).get(change.name) is change.new:
                            change.set(change.old)
                    self._forget(record)
                    record.state, record.reason = State.PENDING, _waiting(record.patch)
            self._settle(ready=name)

    def _settle(self, ready: str | None = None, raising: bool = True) -> None:
        """Decide every pending patch whose main module is there, then tell of the unhealthy."""
        wrong: list[SettingsError] = []

        def is_due(record: Record) -> bool:
            main = Target.parse(record.patch.target).module
            return record.state is State.PENDING and (main == ready or is_ready(main))

        if any(map(is_due, self.records.values())):
            from .judge import trees_kept

            with trees_kept():
                for record in filter(is_due, self.records.values()):
                    try:
                        self._decide(record, ready)
                    except SettingsError as error:
                        record.state, record.reason = State.FAILED, str(error)
                        wrong.append(error)
        self._find_shadows()
        self._tell(raising)
        if wrong and raising:
            raise wrong[0]

    def _decide(self, record: Record, ready: str | None) -> None:
        """Judge one patch, and apply it if it fits and all its modules are there."""
        from .judge import judge
        from .plan import inherited_from

        verdict = judge(
            record.patch,
            accepted=self._settings.accepted.get(record.patch.id, frozenset()),
            series=[other.patch for other in self.records.values()],
        )
        if verdict.family is None:
            record.state, record.reason = verdict.state, verdict.reason
            inherited = inherited_from(Target.parse(record.patch.target))
            if verdict.state is State.NOT_APPLICABLE and inherited:
                record.state = State.DRIFTED
                record.reason = f"{record.patch.target} is not defined there{inherited}"
            return
        modules = {Target.parse(edit.target).module for edit in verdict.family.edits}
        if all(module == ready or is_ready(module) for module in modules):
            self._apply(record, verdict.family, verdict.reason)

    def _apply(self, record: Record, family: Family, reason: str) -> None:
        """All edits of the family, or none."""
        from .plan import plan

        done: list[Change] = []
        try:
            for change in plan(record.patch, family, self._on_top):
                done.append(change)
                change.set(change.new)
                if change.live is not change.new:
                    raise TargetError(f"{change.target}: setting the attribute had no effect")
        except Exception as error:
            for change in reversed(done):
                if change.live is not change.old:
                    change.set(change.old)
            foreign = isinstance(error, ForeignPatchError)
            record.state = State.SHADOWED if foreign else State.FAILED
            record.reason = (
                str(error) if isinstance(error, MegatronPatchError) else f"{error!r} while applying"
            )
            if not isinstance(error, MegatronPatchError):
                _logger().exception("%s: applying failed; rolled back", record.patch.id)
            return
        record.changes = done
        record.state, record.reason = State.APPLIED, reason
        self._applied.append(record)

    def _on_top(self, owner: Any, name: str) -> Change | None:
        for record in reversed(self._applied):
            for change in record.changes:
                if change.owner is owner and change.name == name:
                    return change
        return None

    def _last_first(self, records: Sequence[Record]) -> list[Record]:
        """``records``, and before each those that were applied on top of it."""
        below: set[tuple[int, str]] = set()
        found: list[Record] = []
        for record in self._applied:
            places = {(id(change.owner), change.name) for change in record.changes}
            if record in records or places & below:
                found.append(record)
                below |= places
        return [*reversed(found), *(record for record in records if record not in found)]

    def _find_shadows(self) -> None:
        for record in self._applied:
            foreign = [
                change.target
                for change in record.changes
                if (top := self._on_top(change.owner, change.name)) and top.live is not top.new
            ]
            if foreign:
                record.state = State.SHADOWED
                record.reason = f"{', '.join(foreign)}: somebody else replaced what we put there"
            else:
                if record.state is State.SHADOWED:
                    record.reason = "the other patch is gone; ours runs again"
                record.state = State.APPLIED

    def _revert(self, record: Record, reason: str) -> None:
        if record in self._applied:
            foreign = [c.target for c in record.changes if c.live is not c.new]
            if foreign:
                record.state = State.SHADOWED
                record.reason = f"not removed: {', '.join(foreign)} is not what we put there"
                return
            for change in reversed(record.changes):
                change.set(change.old)
            self._forget(record)
        record.state, record.reason = State.DISABLED, reason

    def _forget(self, record: Record) -> None:
        record.changes = []
        if record in self._applied:
            self._applied.remove(record)

    def _tell(self, raising: bool) -> None:
        unhealthy = [r for r in self.records.values() if r.state in UNHEALTHY]
        for record in unhealthy:
            if record.state not in record.warned:
                record.warned.add(record.state)
                message = _message(record)
                _logger().warning("%s", message)
                if not (self._settings.strict and raising):
                    warnings.warn(message, MegatronPatchWarning, stacklevel=2)
        self._summarise()
        if unhealthy and self._settings.strict and raising:
            raise StrictModeError("\n".join(map(_message, unhealthy)))

    def _summarise(self) -> None:
        """Log, once a process, what became of the selected patches when all of them are settled."""
        states = [r.state for r in self.records.values() if r.state is not State.DISABLED]
        counts: Counter[State] = Counter(states)
        if self._summarised or not counts or counts[State.PENDING]:
            return
        self._summarised = True
        if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun starts many processes a node
            shown = [State.APPLIED, State.UPSTREAMED, State.DRIFTED]
            shown += [state for state in counts if state not in shown]
            _logger().info(
                "megatron-core %s: %s",
                megatron_version() or "of unknown version",
                ", ".join(f"{counts[state]} {state}" for state in shown),
            )


def _waiting(patch: Patch) -> str:
    return f"{Target.parse(patch.target).module} has not been imported yet"


def _message(record: Record) -> str:
    patch = record.patch
    change = "this change" if patch.upstream_pr is None else f"upstream #{patch.upstream_pr}"
    return (
        f"{patch.id} is {record.state}: {record.reason}. Megatron runs as it is, without "
        f"{change}; known releases: megatron-core {patch.releases}. "
        f"To run without the patch on purpose, set MEGATRON_PATCH=-{patch.id}"
    )
