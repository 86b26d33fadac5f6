"""Judge each patch against the source, apply it whole or not at all, and take it back.

Nothing here runs on a hot path: the functions that are put in place are plain functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import notices
from .edits import Add, Target
from .errors import ForeignPatchError, MegatronPatchError, SettingsError, StrictModeError
from .forks import ForkSafeLock
from .importer import PostImportFinder, is_absent, is_ready
from .model import Patch, Variant
from .settings import Settings
from .stack import Case, Stack
from .states import PatchStatus, State
from .telling import Teller

# `judge`, `plan` and `logging` are imported by the first call that needs them: they are a third of
# the time that `import megatron_patch` would take, in processes without Megatron too.


def modules_of(patch: Patch) -> set[str]:
    """The modules whose import can settle the patch."""
    added = (e.target for v in patch.variants for e in v.edits if isinstance(e, Add))
    return {Target.parse(target).module for target in (*patch.targets, *added)}


class Engine:
    """The patches of one process. All methods are safe to call from several threads."""

    def __init__(self, series: Sequence[Patch]) -> None:
        self.cases = {patch.id: Case(patch) for patch in series}
        self._stack = Stack()
        self._teller = Teller()
        self._settings = Settings()
        self._lock = ForkSafeLock()
        self.finder = PostImportFinder(self._imported)

    @property
    def series(self) -> tuple[Patch, ...]:
        """The patches, in the order in which they are applied."""
        return tuple(case.patch for case in self.cases.values())

    @property
    def given(self) -> Mapping[str, str]:
        """The environment variables that the last ``install()`` read, empty ones left out."""
        return self._settings.given

    def install(self, settings: Settings) -> None:
        """Select the patches, settle those whose modules are imported, wait for the others.

        Raises ``StrictModeError``, with everything taken back, when ``settings.strict`` and a
        selected patch is unhealthy, and likewise ``SettingsError`` when a digest of
        ``settings.accepted`` is not that of any target of its patch.
        """
        with self._lock:
            self._settings = settings
            out = [case for case in self.cases.values() if case.patch.id not in settings.selected]
            for case in self._stack.last_first(out):
                self._revert(case, "not selected by MEGATRON_PATCH")
            for case in self.cases.values():
                # Also patches that failed before, which may succeed now, and those on top of
                # another patch.
                if case not in out and case not in self._stack:
                    case.state, case.reason = State.PENDING, _waiting(case.patch)
            selected = [case for case in self.cases.values() if case.state is not State.DISABLED]
            self.finder.watch({m for case in selected for m in modules_of(case.patch)})
            try:
                self._settle()
            except (StrictModeError, SettingsError):
                self.uninstall()
                raise

    def uninstall(self) -> None:
        """Restore the original objects, except where somebody else's patch is on top of ours."""
        with self._lock:
            self.finder.stop()
            for case in self._stack.last_first(list(self.cases.values())):
                self._revert(case, "uninstalled")

    def status(self) -> tuple[PatchStatus, ...]:
        """An entry for each patch, in the order of the series, as things are now."""
        with self._lock:
            self._settle(raising=False)
            return tuple(
                PatchStatus(
                    id=case.patch.id,
                    kind=case.patch.kind,
                    state=case.state,
                    reason=case.reason,
                    upstream_pr=case.patch.upstream_pr,
                    fixed_in=case.patch.fixed_in,
                )
                for case in self.cases.values()
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
                for case in self.cases.values():
                    if case.state is State.PENDING and name in modules_of(case.patch):
                        case.state, case.reason = State.FAILED, why
                if self._settings.strict:
                    raise StrictModeError(why) from error
                notices.line(f"{why}; Megatron runs as it is")

    def _decide_again(self, name: str) -> None:
        cases = [case for case in self.cases.values() if name in modules_of(case.patch)]
        for case in self._stack.last_first(cases):
            if case.state is not State.DISABLED:
                # A reload has made new functions; those of other modules are still ours.
                self._stack.take(case)
                case.state, case.reason = State.PENDING, _waiting(case.patch)
        self._settle(ready=name)

    def _settle(self, ready: str | None = None, raising: bool = True) -> None:
        """Decide each pending patch whose main module is imported, or does not exist. Then tell.

        ``ready`` is a module whose code has just run: then no ``SettingsError`` is raised.
        """
        wrong: list[SettingsError] = []

        def is_due(case: Case) -> bool:
            main = Target.parse(case.patch.target).module
            there = main == ready or is_ready(main)
            return case.state is State.PENDING and (there or is_absent(main))

        if any(map(is_due, self.cases.values())):
            from .judge import trees_kept

            with trees_kept():
                for case in filter(is_due, self.cases.values()):
                    try:
                        self._decide(case, ready)
                    except SettingsError as error:
                        case.state, case.reason = State.FAILED, str(error)
                        wrong.append(error)
                    except Exception as error:
                        case.state = State.FAILED
                        case.reason = f"{notices.described(error)}, while judging"
            self._stack.forget_trees()
        self._find_shadows()
        self._teller.tell(list(self.cases.values()), strict=self._settings.strict and raising)
        if wrong and raising and ready is None:
            raise wrong[0]

    def _decide(self, case: Case, ready: str | None) -> None:
        """Judge one patch, and apply it if it fits and all its modules are there."""
        from .judge import judge
        from .places import inherited_from, was_left_out
        from .verdicts import Verdict

        def is_there(target: str) -> bool:
            module = Target.parse(target).module
            return module == ready or is_ready(module)

        judgement = judge(
            case.patch,
            accepted=self._settings.accepted.get(case.patch.id, frozenset()),
            series=self.series,
        )
        # Where source cannot be read, the judge has said so.
        readable = judgement.verdict in (Verdict.APPLICABLE, Verdict.UPSTREAMED)
        for target in filter(is_there, case.patch.targets if readable else ()):
            if was_left_out(Target.parse(target)):
                case.state = State.NOT_APPLICABLE
                case.reason = f"{target} is not defined: what it needs could not be imported"
                return
        if judgement.variant is None:
            case.state, case.reason = State(judgement.verdict.value), judgement.reason
            if judgement.verdict is Verdict.UPSTREAMED:
                # What is not imported yet is judged again when it is.
                case.upstreamed = judgement.reason
                self._prove(case, [target for target in judgement.proof if is_there(target)])
            inherited = inherited_from(Target.parse(case.patch.target))
            if judgement.verdict is Verdict.NOT_APPLICABLE and inherited:
                case.state = State.DRIFTED
                case.reason = f"{case.patch.target} is not defined there{inherited}"
            return
        if all(is_there(edit.target) for edit in judgement.variant.edits):
            self._apply(case, judgement.variant, judgement.reason)

    def _prove(self, case: Case, targets: Sequence[str]) -> None:
        """Where the source has a change already, its code must be what runs, or be below that."""
        from .plan import prove

        try:
            case.conditions = [prove(t, self._stack.on_top, wrapped=True) for t in targets]
        except ForeignPatchError as error:
            case.state, case.reason = State.SHADOWED, str(error)
        else:
            case.state, case.reason = State.UPSTREAMED, case.upstreamed

    def _apply(self, case: Case, variant: Variant, reason: str) -> None:
        """All edits of the variant, or none."""
        from .plan import plan

        try:
            self._stack.put(case, plan(case.patch, variant, self._stack.on_top))
        except Exception as error:
            foreign = isinstance(error, ForeignPatchError)
            case.state = State.SHADOWED if foreign else State.FAILED
            case.reason = (
                str(error) if isinstance(error, MegatronPatchError) else f"{error!r} while applying"
            )
            if not isinstance(error, MegatronPatchError):
                notices.logger().exception("%s: applying failed; rolled back", case.patch.id)
            return
        case.state, case.reason = State.APPLIED, reason

    def _find_shadows(self) -> None:
        for case in self.cases.values():
            items = (*case.changes, *case.conditions)
            foreign = [str(item.target) for item in items if not self._stack.runs(item)]
            if case not in self._stack:
                if foreign or (items and case.state is State.SHADOWED):
                    self._prove(case, [str(item.target) for item in items])
            elif foreign:
                case.state = State.SHADOWED
                case.reason = f"{', '.join(foreign)}: somebody else replaced what was there"
            else:
                if case.state is State.SHADOWED:
                    case.reason = "the other patch is gone; ours runs again"
                case.state = State.APPLIED

    def _revert(self, case: Case, reason: str) -> None:
        if case in self._stack:
            foreign = [str(c.target) for c in case.changes if not (c.is_there and c.is_made)]
            if foreign:
                case.state = State.SHADOWED
                case.reason = f"not removed: {', '.join(foreign)} is not what we put there"
                return
        self._stack.take(case)
        case.state, case.reason = State.DISABLED, reason


def _waiting(patch: Patch) -> str:
    return f"{Target.parse(patch.target).module} has not been imported yet"
