"""Put a selection of patches in force, quickly, and take it back.

To judge and compile the patches takes a quarter of a second, and a run of the matrix less. So each
selection is installed once, as everybody does it, and what its patches have changed is kept: the
code of functions, and attributes of modules and classes.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import megatron_patch
from megatron_patch.backports import SERIES
from megatron_patch.engine import modules_of
from megatron_patch.model import MAMBA
from megatron_patch.places import Change, CodeChange
from megatron_patch.settings import SELECTION, Settings

NONE, PERFORMANCE, CORRECTNESS, ALL = "none", "performance", "correctness", "all"

ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """An attribute that a selection of patches changes: of a module, a class or a function."""

    owner: Any
    name: str
    released: Any
    patched: Any


def _put(owner: Any, name: str, value: Any) -> None:
    if value is ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


@contextmanager
def installed(selection: str) -> Iterator[None]:
    """Have the selection installed; afterwards nothing is."""
    megatron_patch.uninstall()
    before = os.environ.get(SELECTION)
    os.environ[SELECTION] = selection
    try:
        megatron_patch.install()
        yield
    finally:
        megatron_patch.uninstall()
        if before is None:
            del os.environ[SELECTION]
        else:
            os.environ[SELECTION] = before


class Selections:
    """Selections of patches on the imported Megatron. Values of ``MEGATRON_PATCH`` name them.

    Uninstalls what is installed; :meth:`close` installs it again.

    Args:
        patches: a selection; of the others, only the patches that are in this one too are applied.
    """

    def __init__(self, patches: str = ALL) -> None:
        self._patches = patches
        import_targets()
        megatron_patch.uninstall()
        self._kept: dict[str, list[Difference]] = {}
        self.states: dict[str, dict[str, str]] = {}
        """Of each selection that was in force, the states of the patches."""

    def applied(self, selection: str) -> list[str]:
        """The ids of the patches that are applied under a selection."""
        self._find(selection)
        return [name for name, state in self.states[selection].items() if state == "applied"]

    @contextmanager
    def force(self, selection: str) -> Iterator[None]:
        """Have the selection in force."""
        differences = self._find(selection)
        for difference in differences:
            _put(difference.owner, difference.name, difference.patched)
        try:
            yield
        finally:
            for difference in reversed(differences):
                _put(difference.owner, difference.name, difference.released)

    @contextmanager
    def anew(self, selection: str) -> Iterator[None]:
        """Have the selection in force as it is installed with what is in the process now."""
        with warnings.catch_warnings():
            # Some patches are shadowed then, as they should be.
            warnings.simplefilter("ignore", megatron_patch.MegatronPatchWarning)
            with installed(self._narrowed(selection)):
                yield

    def close(self) -> None:
        """Install what ``MEGATRON_PATCH`` selects."""
        megatron_patch.install()

    def _narrowed(self, selection: str) -> str:
        if self._patches == ALL:
            return selection
        ids = [
            set(Settings.from_environment(SERIES, {SELECTION: text}).selected)
            for text in (selection, self._patches)
        ]
        return ",".join(sorted(ids[0] & ids[1])) or NONE

    def _find(self, selection: str) -> list[Difference]:
        if selection in self._kept:
            return self._kept[selection]
        found: dict[tuple[int, str], Difference] = {}
        with installed(self._narrowed(selection)):
            self.states[selection] = {
                entry.id: str(entry.state) for entry in megatron_patch.status()
            }
            for case in megatron_patch._engine.cases.values():
                for change in case.changes:
                    difference = _difference(change)
                    found[id(difference.owner), difference.name] = difference
        self._kept[selection] = list(found.values())
        return self._kept[selection]


def _difference(change: Change) -> Difference:
    """The difference that a change makes, with the changes of other patches on top of it."""
    if isinstance(change, CodeChange):
        function = change.function
        return Difference(function, "__code__", change.released, function.__code__)
    return Difference(change.owner, change.target.name, ABSENT, change.value)


def import_targets() -> None:
    """Import every module that a patch changes and the release has, so that none is pending.

    Without Triton, 0.16 has no Mamba layers.
    """
    for patch in SERIES:
        for name in modules_of(patch):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                is_absent = error.name is not None and name.startswith(error.name)
                if not is_absent and (error.name != "triton" or not name.startswith(MAMBA)):
                    raise
