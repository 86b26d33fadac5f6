"""The patches whose code runs in this process, each on top of those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import TargetError
from .model import Patch
from .states import State

if TYPE_CHECKING:
    from types import FunctionType

    from .places import Addition, Change, CodeChange, Condition
    from .plan import Plan


class Case:
    """One patch in this process: its state, the reason for it, and what was changed for it."""

    def __init__(self, patch: Patch) -> None:
        self.patch = patch
        self.state = State.DISABLED
        self.reason = "not installed"
        self.changes: list[Change] = []
        self.conditions: list[Condition] = []
        self.upstreamed = ""  #: the reason, where the source has the change


class Stack:
    """The cases whose changes are made, in the order in which they were."""

    def __init__(self) -> None:
        self._cases: list[Case] = []

    def __contains__(self, case: Case) -> bool:
        return case in self._cases

    def put(self, case: Case, plan: Plan) -> None:
        """Make all changes of the plan, or none; what a failed one raises is raised again."""
        done: list[Change] = []
        try:
            for change in plan.changes:
                done.append(change)
                change.make()
                if not change.is_made:
                    raise TargetError(f"{change.target}: setting the attribute had no effect")
        except Exception:
            _undo(done)
            raise
        case.changes, case.conditions = plan.changes, plan.conditions
        self._cases.append(case)

    def take(self, case: Case) -> None:
        """Undo what is made of the changes of a case, and forget what they were."""
        _undo(case.changes)
        case.changes, case.conditions = [], []
        if case in self._cases:
            self._cases.remove(case)

    def forget_trees(self) -> None:
        """Keep no trees, which are there because the next patch may be for the same function."""
        from .places import CodeChange

        for case in self._cases:
            for change in case.changes:
                if isinstance(change, CodeChange):
                    change.tree = None

    def on_top(self, function: FunctionType) -> CodeChange | None:
        """The last change of a function's code."""
        for case in reversed(self._cases):
            for change in case.changes:
                if getattr(change, "function", None) is function:
                    return change  # type: ignore[return-value]
        return None

    def runs(self, item: Condition | Addition) -> bool:
        """Whether what runs as a target is what was judged, or what we made of it."""
        function: FunctionType | None = getattr(item, "function", None)
        if not item.is_there or function is None:
            return item.is_there
        top = self.on_top(function)
        return top.is_made if top else function.__code__ is item.released  # type: ignore[union-attr]

    def last_first(self, cases: Sequence[Case]) -> list[Case]:
        """``cases``, and before each those that were put on top of it."""
        below: set[object] = set()
        found: list[Case] = []
        for case in self._cases:
            places = {change.place for change in case.changes}
            if case in cases or places & below:
                found.append(case)
                below |= places
        return [*reversed(found), *(case for case in cases if case not in found)]


def _undo(changes: Sequence[Change]) -> None:
    for change in reversed(changes):
        if change.is_made:
            change.undo()
