"""Tell the operator what became of the patches: each trouble once, and one summary."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from . import notices
from .errors import StrictModeError
from .sources import megatron_version
from .stack import Case
from .states import UNHEALTHY, State


class Teller:
    """Tells of the patches of one process, and remembers what it has told."""

    def __init__(self) -> None:
        self._warned: set[tuple[str, State]] = set()
        self._summarised = False

    def tell(self, cases: Sequence[Case], *, strict: bool) -> None:
        """Log what is new. Raises ``StrictModeError`` if ``strict`` and a patch is unhealthy."""
        unhealthy = [case for case in cases if case.state in UNHEALTHY]
        for case in unhealthy:
            if (case.patch.id, case.state) not in self._warned:
                self._warned.add((case.patch.id, case.state))
                notices.trouble(_message(case), is_raised=strict)
        self._summarise(cases)
        if unhealthy and strict:
            raise StrictModeError("\n".join(map(_message, unhealthy)))

    def _summarise(self, cases: Sequence[Case]) -> None:
        """Log, once a process, what became of the selected patches when all of them are settled."""
        states = [case.state for case in cases if case.state is not State.DISABLED]
        counts: Counter[State] = Counter(states)
        waiting = [case.patch for case in cases if case.state is State.PENDING]
        if self._summarised or not counts or not all(patch.may_stay_pending for patch in waiting):
            return
        self._summarised = True
        if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun starts many processes a node
            shown = [State.APPLIED, State.UPSTREAMED, State.DRIFTED]
            shown += [state for state in counts if state not in shown]
            version = megatron_version() or "of unknown version"
            found = ", ".join(f"{counts[state]} {state}" for state in shown)
            notices.log("info", f"megatron-core {version}: {found}")


def _message(case: Case) -> str:
    patch = case.patch
    change = "this change" if patch.upstream_pr is None else f"upstream #{patch.upstream_pr}"
    return (
        f"{patch.id} is {case.state}: {case.reason}. Megatron runs as it is, without "
        f"{change}; known releases: megatron-core {patch.releases}. "
        f"To run without the patch on purpose, set MEGATRON_PATCH=-{patch.id}"
    )
