"""Read the source text of modules without importing or executing anything."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import cast

from .errors import SourceMissingError


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
        spec = PathFinder.find_spec(prefix, path) if loaded is None else loaded.__spec__
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
