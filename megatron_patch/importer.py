"""Call back when a module of interest has been imported, each time its code has run.

A finder of our own, and not ``wrapt.register_post_import_hook``: that one does not see reloads,
and calls back at once for a module that is still half-way through its import.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .sources import find_module_spec, search_finders, spec_of

Callback = Callable[[str], None]


def is_ready(name: str) -> bool:
    """Whether module ``name`` is imported, and its import has ended."""
    module = sys.modules.get(name)
    return module is not None and not getattr(spec_of(module), "_initializing", False)


#: Modules that are there, imported or not.
_found: set[str] = set()


def is_absent(name: str) -> bool:
    """Whether module ``name`` does not exist, which is known once its package is imported.

    Or once it is known that its package does not exist either.
    """
    package = name.rpartition(".")[0]
    if name in _found or not package:
        return False
    if not is_ready(package):
        return is_absent(package)
    try:
        absent = find_module_spec(name) is None
    except Exception:  # a finder of somebody else's; what it raises is told when source is read
        return False
    if not absent:
        _found.add(name)
    return absent


class PostImportFinder:
    """Calls ``callback(name)`` after the code of a watched module has run, also on reload.

    A finder of ``sys.meta_path``. It does not derive from ``importlib.abc.MetaPathFinder``, whose
    module takes longer to import than this whole package.
    """

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._names: set[str] = set()
        self._searching = threading.local()

    def watch(self, names: Iterable[str]) -> None:
        """Start watching; a module that is half-imported just now calls back at its end."""
        self._names.update(names)
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        for name in self._names:
            if sys.modules.get(name) is not None and not is_ready(name):
                _call_at_end_of_import(name, self._callback)

    def stop(self) -> None:
        """Stop watching. Modules that are being imported now do not call back any more."""
        self._names.clear()
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders give, with a loader that calls back."""
        busy: set[str] = self._searching.__dict__.setdefault("names", set())
        if fullname not in self._names or fullname in busy:
            return None
        busy.add(fullname)
        try:
            spec = search_finders(fullname, path, target, without=self)
        finally:
            busy.discard(fullname)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            loader = _NotifyingLoader(fullname, spec.loader, self)
            spec.loader = loader  # type: ignore[assignment]
        return spec

    def notify(self, name: str) -> None:
        """Call back, unless watching was stopped meanwhile, or a copy was made on the side."""
        if name in self._names and name in sys.modules:
            self._callback(name)


class _NotifyingLoader:
    """Lends itself to one import, then puts the real loader back in its place."""

    def __init__(self, name: str, loader: Any, finder: PostImportFinder) -> None:
        self._name = name  # a module's own code may change what it says
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # while it is being copied
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # Only where it was put: what the real loader has made need not take attributes.
        if getattr(module, "__loader__", None) is self:
            module.__loader__ = self._loader
        spec = getattr(module, "__spec__", None)
        if spec is not None and spec.loader is self:
            spec.loader = self._loader
        self._loader.exec_module(module)
        self._finder.notify(self._name)


def _call_at_end_of_import(name: str, callback: Callback) -> None:
    """Have importlib itself tell when the import of a half-imported module ends.

    Its last step, on success and on failure, is to set ``_initializing`` of the module's spec
    to false.
    """
    spec = spec_of(sys.modules.get(name))

    class NotifyingSpec(ModuleSpec):
        @property
        def _initializing(self) -> bool:
            return bool(self.__dict__["_initializing"])

        @_initializing.setter
        def _initializing(self, value: bool) -> None:
            self.__dict__["_initializing"] = value
            if not value and self.__class__ is NotifyingSpec:
                self.__class__ = ModuleSpec  # type: ignore[assignment]
                if name in sys.modules:
                    callback(name)

    if type(spec) is ModuleSpec:
        spec.__class__ = NotifyingSpec
        if not spec.__dict__["_initializing"]:  # it ended in another thread meanwhile
            spec._initializing = False  # type: ignore[attr-defined]
