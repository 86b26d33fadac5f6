"""Judge each patch against the source, apply it whole or not at all, and take it back.

Nothing here runs on a hot path: the functions that are put in place are plain functions.
"""

from __future__ import annotations
import __future__

import functools
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from . import fingerprint, rewrite
from .errors import (
    ForeignPatchError,
    MegatronPatchError,
    MegatronPatchWarning,
    StrictModeError,
    TargetError,
)
from .fingerprint import Definition
from .importer import PostImportFinder, is_ready
from .model import UNHEALTHY, Add, Edit, Family, Patch, PatchStatus, State, Target
from .settings import Settings
from .sources import read_source

logger = logging.getLogger("megatron_patch")

ABSENT = object()


@dataclass(frozen=True)
class Verdict:
    """What the source says of a patch: ``family`` is set when, and only when, it applies."""

    state: State
    reason: str
    family: Family | None = None


@dataclass
class Change:
    """One attribute that a patch has set: ``owner.name`` was ``old`` and is ``new``."""

    owner: Any
    name: str
    old: Any
    new: Any
    target: str
    definition: Definition | None

    @property
    def live(self) -> Any:
        """What is there now, in the owner's own namespace."""
        return vars(self.owner).get(self.name, ABSENT)

    def set(self, value: Any) -> None:
        """Put ``value`` there, or nothing for ``ABSENT``."""
        if value is ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)


@dataclass
class Record:
    """The state of one patch in this process."""

    patch: Patch
    state: State = State.DISABLED
    reason: str = "not installed"
    changes: list[Change] = field(default_factory=list)
    warned: set[State] = field(default_factory=set)


def modules_of(patch: Patch) -> set[str]:
    """The modules whose import can settle the patch."""
    targets = [edit.target for family in patch.families for edit in family.edits]
    return {Target.parse(target).module for target in (patch.target, *targets)}


def judge(patch: Patch, read: Callable[[str], str | None] = read_source) -> Verdict:
    """Compare the source with the fingerprints of the record; import and execute nothing.

    ``read`` gives a module's text, or ``None`` for a module that does not exist.
    """
    drifts: list[tuple[tuple[int, int], str]] = []
    find = functools.cache(functools.partial(_definition, read=functools.cache(read)))
    try:
        if find(patch.target) is None:
            return Verdict(State.NOT_APPLICABLE, f"{patch.target} does not exist in this release")
        for known in patch.upstreamed:
            found = find(known.target)
            if found is not None and found.digest == known.digest:
                return Verdict(State.UPSTREAMED, f"{known.target} is that of {known.releases}")
        for family in patch.families:
            misses = [miss for edit in family.edits for miss in _misses(edit, find)]
            if not misses:
                return Verdict(State.PENDING, f"source of {family.releases}", family)
            # The closest family is the one with the fewest misses, then with the most matches.
            rank = (len(misses), -len(family.edits))
            drifts.append((rank, f"{'; '.join(misses)} (source of {family.releases})"))
    except SyntaxError as error:
        return Verdict(State.DRIFTED, f"{patch.target}: the source does not parse: {error}")
    except TargetError as error:
        return Verdict(State.DRIFTED, str(error))
    closest = min(drifts, default=((0, 0), f"{patch.target}: no known source"))[1]
    return Verdict(State.DRIFTED, f"unknown source: {closest}")


def _definition(target: str, read: Callable[[str], str | None]) -> Definition | None:
    parsed = Target.parse(target)
    text = read(parsed.module)
    return None if text is None else fingerprint.locate(parsed.module, text, parsed.qualname)


def _misses(edit: Edit, find: Callable[[str], Definition | None]) -> Iterator[str]:
    if isinstance(edit, Add):
        return
    found = find(edit.target)
    if found is None:
        yield f"{edit.target}: expected {edit.digest}, not found"
    elif found.digest != edit.digest:
        yield f"{edit.target}: expected {edit.digest}, found {found.digest}"


class Engine:
    """The patches of one process. All methods are safe to call from several threads."""

    def __init__(self, series: Sequence[Patch]) -> None:
        self.records = {patch.id: Record(patch) for patch in series}
        self._applied: list[Record] = []
        self._strict = False
        self._lock = threading.RLock()
        self._finder = PostImportFinder(self._imported)

    def install(self, settings: Settings) -> None:
        """Select the patches, settle those whose modules are imported, wait for the others.

        Raises ``StrictModeError``, with everything taken back, when ``settings.strict`` and a
        selected patch is unhealthy.
        """
        with self._lock:
            self._strict = settings.strict
            for record in self.records.values():
                if record.patch.id not in settings.selected:
                    self._revert(record, "not selected by MEGATRON_PATCH")
                elif record.state is State.DISABLED:
                    record.state, record.reason = State.PENDING, _waiting(record.patch)
            selected = [r for r in self.records.values() if r.state is not State.DISABLED]
            self._finder.watch({m for record in selected for m in modules_of(record.patch)})
            try:
                self._settle()
            except StrictModeError:
                self.uninstall()
                raise

    def uninstall(self) -> None:
        """Restore the original objects, except where somebody else's patch is on top of ours."""
        with self._lock:
            self._finder.stop()
            for record in reversed(list(self.records.values())):
                self._revert(record, "uninstalled")

    def status(self) -> tuple[PatchStatus, ...]:
        """One entry a patch, in the order of the series, looked up now."""
        with self._lock:
            self._settle(raising=False)
            self._find_shadows()
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
            for record in self.records.values():
                if name in modules_of(record.patch) and record.state is not State.DISABLED:
                    for change in reversed(record.changes):
                        # A reload has made new classes; those of other modules are still ours.
                        if vars(change.owner).get(change.name) is change.new:
                            change.set(change.old)
                    self._forget(record)
                    record.state, record.reason = State.PENDING, _waiting(record.patch)
            self._settle(ready=name)

    def _settle(self, ready: str | None = None, raising: bool = True) -> None:
        """Decide every pending patch whose main module is there, then tell of the unhealthy."""
        for record in self.records.values():
            if record.state is not State.PENDING:
                continue
            main = Target.parse(record.patch.target).module
            if main != ready and not is_ready(main):
                continue
            verdict = judge(record.patch)
            if verdict.family is None:
                record.state, record.reason = verdict.state, verdict.reason
                inherited = _inherited(Target.parse(record.patch.target))
                if verdict.state is State.NOT_APPLICABLE and inherited:
                    record.state = State.DRIFTED
                    record.reason = f"{record.patch.target} is not defined there{inherited}"
                continue
            modules = {Target.parse(edit.target).module for edit in verdict.family.edits}
            if all(module == ready or is_ready(module) for module in modules):
                self._apply(record, verdict.family)
        self._tell(raising)

    def _apply(self, record: Record, family: Family) -> None:
        """All edits of the family, or none."""
        done: list[Change] = []
        try:
            for change in self._plan(record.patch, family):
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
                logger.exception("%s: applying failed; rolled back", record.patch.id)
            return
        record.changes = done
        record.state, record.reason = State.APPLIED, f"source of {family.releases}"
        self._applied.append(record)

    def _plan(self, patch: Patch, family: Family) -> list[Change]:
        """The changes of the family, in order, with nothing changed yet."""
        edits: dict[str, list[Edit]] = {}
        for edit in family.edits:
            edits.setdefault(edit.target, []).append(edit)
        return [self._change(patch, target, group) for target, group in edits.items()]

    def _change(self, patch: Patch, dotted: str, edits: list[Edit]) -> Change:
        target = Target.parse(dotted)
        owner = _owner(target)
        if isinstance(edits[0], Add):
            return _addition(edits[0], target, owner)
        value = vars(owner).get(target.name, ABSENT)
        below = self._on_top(owner, target.name)
        original = below.definition if below else _definition(dotted, read_source)
        if original is None or value is ABSENT:
            raise TargetError(f"{dotted} is not defined there{_inherited(target)}")
        raw = rewrite.raw_function(original, value)
        edited = original
        for edit in edits:
            if isinstance(edit, Add):
                raise TargetError(f"{dotted}: an addition and an edit of one target")
            edited = rewrite.edited(edited, edit)
        ids = (*getattr(raw, "__megatron_patch__", ()), patch.id)
        function = rewrite.build_function(edited, raw, owner, "megatron_patch " + ",".join(ids))
        function.__dict__["__megatron_patch__"] = ids
        new = rewrite.rebuild(value, raw, function, edited, owner)
        return Change(owner, target.name, value, new, dotted, edited)

    def _on_top(self, owner: Any, name: str) -> Change | None:
        for record in reversed(self._applied):
            for change in record.changes:
                if change.owner is owner and change.name == name:
                    return change
        return None

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
                logger.warning("%s", message)
                if not (self._strict and raising):
                    warnings.warn(message, MegatronPatchWarning, stacklevel=2)
        if unhealthy and self._strict and raising:
            raise StrictModeError("\n".join(map(_message, unhealthy)))


def _waiting(patch: Patch) -> str:
    return f"{Target.parse(patch.target).module} has not been imported yet"


def _message(record: Record) -> str:
    patch = record.patch
    return (
        f"{patch.id} is {record.state}: {record.reason}. Megatron runs as it is, without "
        f"upstream #{patch.upstream_pr}; known releases: megatron-core {patch.releases}. "
        f"To run without the patch on purpose, set MEGATRON_PATCH=-{patch.id}"
    )


def _owner(target: Target) -> Any:
    owner: Any = sys.modules[target.module]
    for name in filter(None, target.scope.split(".")):
        owner = vars(owner).get(name, ABSENT)
        if not isinstance(owner, type):
            raise TargetError(f"{target}: {name!r} is not a class of {target.module}")
    return owner


def _inherited(target: Target) -> str:
    """Where a class that lacks the target inherits it from, as the end of a sentence."""
    owner = _owner(target)
    for base in owner.__mro__[1:] if isinstance(owner, type) else ():
        if target.name in vars(base):
            return f"; it is inherited: patch {base.__module__}:{base.__qualname__}.{target.name}"
    return ""


def _addition(edit: Add, target: Target, owner: Any) -> Change:
    if target.name in vars(owner):
        raise TargetError(f"{edit.target}: the name is taken; expected it to be free")
    namespace: dict[str, Any] = {}
    # Annotations stay text: whether their names exist in the target module does not matter.
    flags = __future__.annotations.compiler_flag
    code = compile(edit.source, f"<megatron_patch {target}>", "exec", flags, dont_inherit=True)
    exec(code, vars(sys.modules[target.module]), namespace)
    value = namespace[target.name]
    if isinstance(value, (FunctionType, type)):
        value.__qualname__ = target.qualname
    return Change(owner, target.name, ABSENT, value, edit.target, None)
