"""One engine in a process, however often this package is imported and under whatever names.

Two engines would take each other's patches for somebody else's.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from .sources import namespace_of

#: Where ``sys.modules`` has the copy of this package whose engine runs, and the name under which
#: ``megatron-patch run`` imports it: the usual one may be Pai-Megatron-Patch's.
NAME = "_megatron_patch"

#: Where the engine's finder has that copy, while it is among those of ``sys.meta_path``.
FINDERS_ATTRIBUTE = "megatron_patch_package"

#: What the console script names itself by, in the package that it is about to import.
COMMAND = "_is_command"


def first_copy(package: str) -> ModuleType:
    """The copy of this package that runs in this process: ``package`` if none did before."""
    mine = sys.modules[package]
    for finder in list(sys.meta_path):
        # Code that mocks sys.modules puts back what was there before this package was imported.
        found = namespace_of(finder).get(FINDERS_ATTRIBUTE)
        if isinstance(found, ModuleType):
            sys.modules.setdefault(NAME, found)
    if sys.modules.setdefault(NAME, mine) is mine:
        return mine
    return importlib.import_module(NAME)  # which waits until another thread has imported it


def is_command(package: str) -> bool:
    """Whether this process is the command ``megatron-patch`` itself, and no process that it runs.

    That imports this package first, whatever its arguments are.
    """
    if COMMAND in vars(sys.modules[package]):
        return True
    # While a package that `python -m` starts is imported, its name is not in `sys.argv`.
    started = sys.orig_argv[-len(sys.argv)] if sys.argv[:1] == ["-m"] else ""
    return started == package or (started[:1] == "-" and started.endswith(f"m{package}"))


def put_in_place_of(package: str, copy: ModuleType) -> None:
    """From now on, ``package`` is ``copy``, and so are the modules in it.

    Who imports the package gets what ``sys.modules`` has for it when its own code has run.
    """
    for name in [n for n in list(sys.modules) if n == package or n.startswith(f"{package}.")]:
        module: object = copy
        for part in name.removeprefix(package).split(".")[1:]:
            module = vars(module).get(part)
            if not isinstance(module, ModuleType):
                break
        if isinstance(module, ModuleType):
            sys.modules[name] = module
        else:
            del sys.modules[name]
