"""Read the source text of modules without importing or executing anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import cast

from .errors import SourceMissingError


def search_finders(
    name: str,
    path: Sequence[str] | None,
    target: ModuleType | None = None,
    *,
    without: object = None,
) -> ModuleSpec | None:
    """The spec that the first finder of ``sys.meta_path`` gives, ``without`` left out."""
    for finder in list(sys.meta_path):
        find = getattr(finder, "find_spec", None)
        if finder is without or find is None:
            continue
        spec: ModuleSpec | None = find(name, path, target)
        if spec is not None:
            return spec
    return None


def _search_below(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    try:
        return search_finders(name, path)
    except KeyError:
        # The path of a namespace package follows that of its parent, which is not imported here.
        spec = ModuleSpec(name, None, is_package=True)
        folders = [os.path.join(entry, name.rpartition(".")[2]) for entry in path or ()]
        spec.submodule_search_locations = [folder for folder in folders if os.path.isdir(folder)]
        return spec


def find_module_spec(name: str) -> ModuleSpec | None:
    """The spec of ``name``, or ``None`` when there is no such module.

    A module that is loaded answers for itself, for the rest the path of its nearest loaded
    parent, or ``sys.path``, is searched. Unlike ``importlib.util.find_spec`` this imports no
    parent package.
    """
    spec: ModuleSpec | None = None
    path: Sequence[str] | None = None
    prefix = ""
    for part in name.split("."):
        prefix = f"{prefix}.{part}" if prefix else part
        loaded = sys.modules.get(prefix)
        spec = loaded.__spec__ if loaded is not None else _search_below(prefix, path)
        if spec is None:
            return None
        # An empty path finds nothing: what is not a package has no submodules.
        path = list(spec.submodule_search_locations or ())
    return spec


def read_source(name: str) -> str | None:
    """The source text of module ``name``, or ``None`` when there is no such module.

    Raises ``SourceMissingError`` when the module is there but its source is not.
    """
    spec = find_module_spec(name)
    if spec is None:
        return None
    get_source = getattr(spec.loader, "get_source", None)
    text = get_source(name) if get_source is not None else None
    if text is None:
        raise SourceMissingError(
            f"{name} has no source text ({spec.origin}); expected a .py file: "
            "install the release from a wheel that has its sources"
        )
    return cast(str, text)


def megatron_version(read: Callable[[str], str | None] = read_source) -> str | None:
    """The version that Megatron-Core's own ``package_info`` says, ``None`` if it does not."""
    import ast

    text = read("megatron.core.package_info")
    if text is None:
        return None
    values: dict[str, object] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            values.update({t.id: node.value.value for t in node.targets if isinstance(t, ast.Name)})
    numbers = [values.get(name) for name in ("MAJOR", "MINOR", "PATCH")]
    if None in numbers:
        return None
    return ".".join(map(str, numbers)) + str(values.get("PRE_RELEASE") or "")
