"""Read the source text of modules without importing or executing anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

from .errors import SourceMissingError

ABSENT = object()


def search_finders(
    name: str,
    path: Sequence[str] | None,
    target: ModuleType | None = None,
    *,
    without: object = None,
) -> ModuleSpec | None:
    """The spec that the first finder of ``sys.meta_path`` gives, ``without`` left out.

    None if the first to find the module has no specs to give, as finders could until Python 3.11:
    the import system then asks that one in its own way.
    """
    for finder in list(sys.meta_path):
        if finder is without:
            continue
        find = getattr(finder, "find_spec", None)
        if find is not None:
            spec: ModuleSpec | None = find(name, path, target)
            if spec is not None:
                return spec
        elif sys.version_info < (3, 12):
            find = getattr(finder, "find_module")
            if find(name, path) is not None:
                return None
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


def namespace_of(module: object) -> Mapping[str, Any]:
    """The names of what is in ``sys.modules``, which may be any object: none of its code is run."""
    try:
        return cast(Mapping[str, Any], object.__getattribute__(module, "__dict__"))
    except AttributeError:
        return {}


def spec_of(module: object) -> ModuleSpec | None:
    """The spec that ``module`` was imported by, ``None`` for what no import has made."""
    spec = namespace_of(module).get("__spec__")
    return spec if issubclass(type(spec), ModuleSpec) else None


def find_module_spec(name: str) -> ModuleSpec | None:
    """The spec of ``name``, or ``None`` when there is no such module.

    A module that is loaded answers for itself, for the rest the path of its nearest loaded
    parent, or ``sys.path``, is searched. Unlike ``importlib.util.find_spec`` this imports no
    parent package.

    Raises ``SourceMissingError`` when somebody has put an object that no import has made, such as
    a mock, into ``sys.modules`` under this name.
    """
    spec: ModuleSpec | None = None
    path: Sequence[str] | None = None
    prefix = ""
    for part in name.split("."):
        prefix = f"{prefix}.{part}" if prefix else part
        loaded = sys.modules.get(prefix, ABSENT)
        if loaded is None:  # which is how an import is forbidden
            return None
        if loaded is ABSENT:
            spec = _search_below(prefix, path)
            if spec is None:
                return None
            places = spec.submodule_search_locations
        else:
            spec = spec_of(loaded)
            own = spec and spec.submodule_search_locations
            places = namespace_of(loaded).get("__path__", own)
        # An empty path finds nothing: what is not a package has no submodules.
        path = list(places or ())
    if spec is None:
        kind = type(loaded)
        raise SourceMissingError(
            f"{name} has no source text: sys.modules holds a {kind.__module__}.{kind.__qualname__} "
            "that no import has made"
        )
    return spec


def read_source(name: str) -> str | None:
    """The source text of module ``name``, or ``None`` when there is no such module.

    Raises ``SourceMissingError`` when the module is there but its source is not, or cannot be read,
    and ``SyntaxError`` or ``UnicodeError`` when it is no text.
    """
    if _kept is None:
        return _read(name)
    if name not in _kept:
        _kept[name] = _read(name)
    return _kept[name]


# The texts that have been read, while they are kept.
_kept: dict[str, str | None] | None = None


def keep_texts(keep: bool) -> None:
    """Read the text of each module once from now on, or forget what was read."""
    global _kept
    _kept = {} if keep else None


def _read(name: str) -> str | None:
    try:
        spec = find_module_spec(name)
        if spec is None:
            return None
        get_source = getattr(spec.loader, "get_source", None)
        text = get_source(name) if get_source is not None else None
    except (SourceMissingError, SyntaxError, UnicodeError):
        raise
    except Exception as error:  # finders and loaders of others may raise whatever they like
        raise SourceMissingError(
            f"the source text of {name} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(text, str):
        raise SourceMissingError(
            f"{name} has no source text ({spec.origin}); expected a .py file: "
            "install the release from a wheel that has its sources"
        )
    return text


def read_data(file: str) -> str:
    """The text of a file, which may be one of this package where that is in an archive.

    Raises ``OSError`` when it cannot be read.
    """
    try:
        with open(file, encoding="utf-8") as opened:
            return opened.read()
    except OSError:
        get_data = getattr(__spec__ and __spec__.loader, "get_data", None)
        if get_data is None:
            raise
        return str(get_data(file), "utf-8")


PACKAGE_INFO = "megatron.core.package_info"


def megatron_version(read: Callable[[str], str | None] = read_source) -> str | None:
    """The version that Megatron-Core's own ``package_info`` says, ``None`` if it does not.

    Where the source of this process's Megatron is missing, what it has imported says so.
    """
    try:
        text = read(PACKAGE_INFO)
        values: Mapping[str, object] = {} if text is None else _constants(text)
    except (SourceMissingError, SyntaxError, ValueError, RecursionError, MemoryError):
        values = namespace_of(sys.modules.get(PACKAGE_INFO)) if read is read_source else {}
    numbers = [values.get(name) for name in ("MAJOR", "MINOR", "PATCH")]
    if None in numbers:
        return None
    return ".".join(map(str, numbers)) + str(values.get("PRE_RELEASE") or "")


def _constants(text: str) -> dict[str, object]:
    """The names that the source of a module assigns constants to, with these constants."""
    import ast

    from .definitions import parse

    values: dict[str, object] = {}
    for node in parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            values.update({t.id: node.value.value for t in node.targets if isinstance(t, ast.Name)})
    return values
