"""Imported by Python at start-up where ``megatron-patch run`` has put this directory on the path.

Also run, under another name, by the ``.pth`` that ``megatron-patch enable`` writes.

Waits for Megatron, imports the package that this file is a part of just before any code of Megatron
runs, and hands on to the ``sitecustomize`` that would have been imported otherwise. A process that
never imports Megatron pays for this file only. Any Python 3 can parse it: the command may start
other interpreters.

The package is imported under a name of its own: ``megatron_patch`` is what the path says, which may
be Pai-Megatron-Patch's, before and after. Where it is this package, the two are one.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = os.path.dirname(_HERE)
_NAME = "_megatron_patch"  # that of `running`
_USUAL_NAME = "megatron_patch"


def _spec(name: str) -> ModuleSpec:
    file = os.path.join(_PACKAGE, "__init__.py")
    spec = ModuleSpec(name, SourceFileLoader(name, file), origin=file, is_package=True)
    spec.submodule_search_locations = [_PACKAGE]
    spec.has_location = True
    return spec


class _BeforeMegatron:
    """A finder of this package alone, that has it imported before Megatron.

    Not in the search itself: Python holds its one lock of all imports there, and a thread that is
    in the middle of an import that ours needs would wait for that for ever.
    """

    waiting = True
    package = os.path.realpath(_PACKAGE)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> object:
        if fullname == _NAME:
            return _spec(fullname)
        if not self.waiting or fullname.partition(".")[0] != "megatron":
            return None
        me: object = self
        for finder in [other for other in sys.meta_path if other is not me]:
            find = getattr(finder, "find_spec", None)
            if find is None:
                # Until Python 3.11, the import system asks such a one in its own way.
                legacy = (
                    getattr(finder, "find_module", None) if sys.version_info < (3, 12) else None
                )
                if legacy is not None and legacy(fullname, path) is not None:
                    return None
                continue
            spec = find(fullname, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):  # a namespace package has no code
                    spec.loader = _AfterUs(spec.loader, self)
                return spec
        return None


class _AfterUs:
    """Lends itself to one import, then puts the real loader back in its place."""

    def __init__(self, loader: object, finder: _BeforeMegatron) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> object:
        if name == "_loader":  # while it is being copied
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: object) -> object:
        return self._loader.create_module(spec)  # type: ignore[attr-defined]

    def exec_module(self, module: object) -> None:
        for owner, name in ((module, "__loader__"), (getattr(module, "__spec__", None), "loader")):
            if getattr(owner, name, None) is self:
                setattr(owner, name, self._loader)
        if self._finder.waiting:
            _import_package()  # in strict mode it may raise, the next time as well
            self._finder.waiting = False
        self._loader.exec_module(module)  # type: ignore[attr-defined]


class _LastResort:
    """Finds this package under its usual name where nothing of that name is on the path."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> object:
        return _spec(fullname) if fullname == _USUAL_NAME else None


def _import_package() -> None:
    """Import the package that this file is a part of, wherever the interpreter's path leads."""
    from importlib import import_module

    try:
        # Where a thread is just importing this package, there must be no second one.
        usual = _is_this_package(sys.modules.get(_USUAL_NAME))
        import_module(_USUAL_NAME if usual else _NAME)
    except Exception as error:
        # A launch that may run unpatched must not fail for want of the patches.
        if os.environ.get("MEGATRON_PATCH_STRICT") == "1":
            raise
        why = " ".join(f"{type(error).__name__}: {error}".split())
        _write(f"megatron_patch: not active in process {os.getpid()}: {why}\n")


def _is_this_package(module: object) -> bool:
    file = getattr(module, "__file__", None)
    folder = os.path.dirname(file) if isinstance(file, str) else ""
    return os.path.realpath(folder) == os.path.realpath(_PACKAGE)


def _write(text: str) -> None:
    try:
        if sys.stderr is sys.__stderr__:
            # What is written to a closed file is kept, and fails again at the end of the process.
            os.fstat(getattr(sys.stderr, "fileno")())
        sys.stderr.write(text)
    except Exception:
        return  # there is no stderr, or it is closed, and nobody to tell


def _chain() -> None:
    """Import the next ``sitecustomize`` on the path in this one's place, if there is one."""
    others = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != _HERE]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    from importlib.util import module_from_spec

    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _leave_note() -> None:
    """Keep this directory open: that this process is reached, for who looks from outside.

    As `notes` does, which would take longer to import than this whole file.
    """
    try:
        number = os.open(_HERE, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return
    if number <= 2 or sys.platform != "linux":
        os.close(number)


def _start() -> None:
    """Wait for Megatron, unless the ``.pth`` has had this very package wait already."""
    package = _BeforeMegatron.package
    if all(getattr(type(other), "package", None) != package for other in sys.meta_path):
        sys.meta_path.insert(0, _BeforeMegatron())  # type: ignore[arg-type]
        sys.meta_path.append(_LastResort())  # type: ignore[arg-type]
        _leave_note()


_start()
if __name__ == "sitecustomize":
    _chain()
