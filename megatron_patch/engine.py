"""Judge each patch against the source, apply it whole or not at all, and take it back.

Nothing here runs on a hot path: the functions that are put in place are plain functions.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import notices
from .edits import Add, Target
from .errors import (
    ForeignPatchError,
    MegatronPatchError,
    SettingsError,
    StrictModeError,
    TargetError,
)
from .forks import ForkSafeLock
from .importer import PostImportFinder, is_ready
from .model import Patch, Variant
from .settings import Settings
from .sources import megatron_version
from .states import UNHEALTHY, PatchStatus, State

if TYPE_CHECKING:
    from types import FunctionType

    from .places import Addition, Change, CodeChange, Condition

# What judges and compiles, `judge` and `plan`, and `logging` are imported by the first call that
# needs them: they are a third of the time that `import megatron_patch` would take, in processes
# without Megatron too.


class Record:
    """The state of one patch in this process."""

    def __init__(self, patch: Patch) -> None:
        self.patch = patch
        self.state = State.DISABLED
        self.reason = "not installed"
        self.changes: list[Change] = []
        self.conditions: list[Condition] = []
        self.upstreamed = ""  #: the reason, where the source has the change
        self.warned: set[State] = set()


def modules_of(patch: Patch) -> set[str]:
    """The modules whose import can settle the patch."""
    added = (e.target for v in patch.variants for e in v.edits if isinstance(e, Add))
    return {Target.parse(target).module for target in (*patch.targets, *added)}


class Engine:
    """The patches of one process. All methods are safe to call from several threads."""

    def __init__(self, series: Sequence[Patch]) -> None:
        self.records = {patch.id: Record(patch) for patch in series}
        self._applied: list[Record] = []
        self._settings = Settings()
        self._summarised = False
        self._lock = ForkSafeLock()
        self.finder = PostImportFinder(self._imported)

    @property
    def series(self) -> tuple[Patch, ...]:
        """The patches, in the order in which they are applied."""
        return tuple(record.patch for record in self.records.values())

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
            self.finder.watch({m for record in selected for m in modules_of(record.patch)})
            try:
                self._settle()
            except (StrictModeError, SettingsError):
                self.uninstall()
                raise

    def uninstall(self) -> None:
        """Restore the original objects, except where somebody else's patch is on top of ours."""
        with self._lock:
            self.finder.stop()
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
        """The code of a target module has just run, for the first time or again.

        This is in the middle of somebody's import, which nothing but strict mode may end.
        """
        with self._lock:
            try:
                self._decide_again(name)
            except StrictModeError:
                raise
            except Exception as error:
                why = f"{notices.described(error)}, after {name} was imported"
                for record in self.records.values():
                    if record.state is State.PENDING and name in modules_of(record.patch):
                        record.state, record.reason = State.FAILED, why
                if self._settings.strict:
                    raise StrictModeError(why) from error
                notices.line(f"{why}; Megatron runs as it is")

    def _decide_again(self, name: str) -> None:
        records = [r for r in self.records.values() if name in modules_of(r.patch)]
        for record in self._last_first(records):
            if record.state is not State.DISABLED:
                # A reload has made new functions; those of other modules are still ours.
                _undo(record.changes)
                self._forget(record)
                record.state, record.reason = State.PENDING, _waiting(record.patch)
        self._settle(ready=name)

    def _settle(self, ready: str | None = None, raising: bool = True) -> None:
        """Decide every pending patch whose main module is there, then tell of the unhealthy.

        ``ready`` is a module whose code has just run: then no ``SettingsError`` is raised.
        """
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
                    except Exception as error:
                        record.state = State.FAILED
                        record.reason = f"{notices.described(error)}, while judging"
        self._find_shadows()
        self._tell(raising)
        if wrong and raising and ready is None:
            raise wrong[0]

    def _decide(self, record: Record, ready: str | None) -> None:
        """Judge one patch, and apply it if it fits and all its modules are there."""
        from .judge import judge
        from .places import inherited_from
        from .verdicts import Judgement

        def is_there(target: str) -> bool:
            module = Target.parse(target).module
            return module == ready or is_ready(module)

        verdict = judge(
            record.patch,
            accepted=self._settings.accepted.get(record.patch.id, frozenset()),
            series=self.series,
        )
        if verdict.variant is None:
            record.state, record.reason = State(verdict.judgement.value), verdict.reason
            if verdict.judgement is Judgement.UPSTREAMED:
                # What is not imported yet is judged again when it is.
                record.upstreamed = verdict.reason
                self._prove(record, [target for target in verdict.proof if is_there(target)])
            inherited = inherited_from(Target.parse(record.patch.target))
            if verdict.judgement is Judgement.NOT_APPLICABLE and inherited:
                record.state = State.DRIFTED
                record.reason = f"{record.patch.target} is not defined there{inherited}"
            return
        if all(is_there(edit.target) for edit in verdict.variant.edits):
            self._apply(record, verdict.variant, verdict.reason)

    def _prove(self, record: Record, targets: Sequence[str]) -> None:
        """Where the source has a change already, its code must be what runs, or be below that."""
        from .plan import prove

        try:
            record.conditions = [prove(t, self._on_top, wrapped=True) for t in targets]
        except ForeignPatchError as error:
            record.state, record.reason = State.SHADOWED, str(error)
        else:
            record.state, record.reason = State.UPSTREAMED, record.upstreamed

    def _apply(self, record: Record, variant: Variant, reason: str) -> None:
        """All edits of the variant, or none."""
        from .plan import plan

        done: list[Change] = []
        try:
            made = plan(record.patch, variant, self._on_top)
            for change in made.changes:
                done.append(change)
                change.make()
                if not change.is_made:
                    raise TargetError(f"{change.target}: setting the attribute had no effect")
        except Exception as error:
            _undo(done)
            foreign = isinstance(error, ForeignPatchError)
            record.state = State.SHADOWED if foreign else State.FAILED
            record.reason = (
                str(error) if isinstance(error, MegatronPatchError) else f"{error!r} while applying"
            )
            if not isinstance(error, MegatronPatchError):
                notices.logger().exception("%s: applying failed; rolled back", record.patch.id)
            return
        record.changes, record.conditions = made.changes, made.conditions
        record.state, record.reason = State.APPLIED, reason
        self._applied.append(record)

    def _on_top(self, function: FunctionType) -> CodeChange | None:
        """The last change of a function's code."""
        for record in reversed(self._applied):
            for change in record.changes:
                if getattr(change, "function", None) is function:
                    return change  # type: ignore[return-value]
        return None

    def _runs(self, item: Condition | Addition) -> bool:
        """Whether what runs as a target is what was judged, or what we made of it."""
        function: FunctionType | None = getattr(item, "function", None)
        if not item.is_there or function is None:
            return item.is_there
        top = self._on_top(function)
        return top.is_made if top else function.__code__ is item.released  # type: ignore[union-attr]

    def _last_first(self, records: Sequence[Record]) -> list[Record]:
        """``records``, and before each those that were applied on top of it."""
        below: set[object] = set()
        found: list[Record] = []
        for record in self._applied:
            places = {change.place for change in record.changes}
            if record in records or places & below:
                found.append(record)
                below |= places
        return [*reversed(found), *(record for record in records if record not in found)]

    def _find_shadows(self) -> None:
        for record in self.records.values():
            items = (*record.changes, *record.conditions)
            foreign = [str(item.target) for item in items if not self._runs(item)]
            if record not in self._applied:
                if foreign or (items and record.state is State.SHADOWED):
                    self._prove(record, [str(item.target) for item in items])
            elif foreign:
                record.state = State.SHADOWED
                record.reason = f"{', '.join(foreign)}: somebody else replaced what was there"
            else:
                if record.state is State.SHADOWED:
                    record.reason = "the other patch is gone; ours runs again"
                record.state = State.APPLIED

    def _revert(self, record: Record, reason: str) -> None:
        if record in self._applied:
            foreign = [str(c.target) for c in record.changes if not (c.is_there and c.is_made)]
            if foreign:
                record.state = State.SHADOWED
                record.reason = f"not removed: {', '.join(foreign)} is not what we put there"
                return
            _undo(record.changes)
        self._forget(record)
        record.state, record.reason = State.DISABLED, reason

    def _forget(self, record: Record) -> None:
        record.changes, record.conditions = [], []
        if record in self._applied:
            self._applied.remove(record)

    def _tell(self, raising: bool) -> None:
        unhealthy = [r for r in self.records.values() if r.state in UNHEALTHY]
        for record in unhealthy:
            if record.state not in record.warned:
                record.warned.add(record.state)
                message = _message(record)
                notices.log("warning", message)
                if not (self._settings.strict and raising):
                    notices.warn(message)
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
            version = megatron_version() or "of unknown version"
            found = ", ".join(f"{counts[state]} {state}" for state in shown)
            notices.log("info", f"megatron-core {version}: {found}")


def _undo(changes: Sequence[Change]) -> None:
    for change in reversed(changes):
        if change.is_made:
            change.undo()


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
