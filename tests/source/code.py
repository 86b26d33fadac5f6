"""The state of each patch, and the code that runs for each function that some patch edits or adds.

As a program, it prints them as JSON.
"""

from __future__ import annotations

import json
import sys
from types import CodeType
from typing import Any

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports import SERIES
from megatron_patch.compilation import functions_below
from megatron_patch.edits import Add
from megatron_patch.source_tree import SourceTree

from ..mamba import import_all


def code_of_targets() -> dict[str, str]:
    """What runs for each function that some variant edits or adds: its code, less its place.

    Of those that are added, names and constants: the compiler has several ways to call a function
    of an imported module, and takes one where it sees the import.
    """
    edits = [edit for patch in SERIES for variant in patch.variants for edit in variant.edits]
    added = {edit.target for edit in edits if isinstance(edit, Add)}
    found = {}
    for target in sorted({edit.target for edit in edits}):
        module, qualname = target.split(":")
        value: Any = sys.modules.get(module)
        for name in qualname.split("."):
            value = getattr(value, "__dict__", {}).get(name)
        codes = [function.__code__ for function in functions_below(value)]
        if codes:
            found[target] = str([without_place(code, target in added) for code in codes])
    return found


def without_place(code: CodeType, is_added: bool) -> tuple[Any, ...]:
    """All parts of a code object that decide what it does."""
    constants = [
        without_place(constant, is_added) if isinstance(constant, CodeType) else constant
        for constant in code.co_consts
    ]
    names = (code.co_name, sorted(code.co_names), code.co_varnames)
    shared = (code.co_cellvars, code.co_freevars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    flags = code.co_flags & 0xFFFF  # above are those of `from __future__`
    return (b"" if is_added else code.co_code, constants, names, shared, counts, flags)


def import_targets(tree: SourceTree) -> None:
    """Import all that is edited: decoding leaves the HTTP server out."""
    modules = {
        edit.target.partition(":")[0] for p in SERIES for v in p.variants for edit in v.edits
    }
    import_all(module for module in modules if tree.path(module) is not None)


def everything() -> dict[str, Any]:
    """Which tree this process has imported, and the state and code of each patch."""
    tree = SourceTree.installed()
    import_targets(tree)
    return {
        "code": code_of_targets(),
        "root": str(tree.root),
        "states": {entry.id: str(entry.state) for entry in megatron_patch.status()},
    }


if __name__ == "__main__":
    testing.start()
    json.dump(everything(), sys.stdout)
