"""Read the records of others, from the files that ``MEGATRON_PATCH_RECORDS`` names.

Such a file is Python, and defines ``PATCHES``: records like those of this package, with their known
source in ``sources``. ``import megatron_patch`` imports this module only where the variable is set.
"""

from __future__ import annotations

import ast
import builtins
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from datetime import date
from types import ModuleType
from typing import Any

from .edits import Add, Before, Edit, Replace, Requires, Substitute, Target, source_of
from .errors import SettingsError
from .judge import TOLD, variant_of
from .model import Kind, Patch, Source, Variant
from .settings import RECORDS, names_of
from .sources import read_data

ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
DIGEST = re.compile(r"[0-9a-f]{16}")
USUAL_NAME = "megatron_patch"
PACKAGE = __name__.rpartition(".")[0]
TEXTS = ("summary", "symptom", "outcome", "releases", "removal", "updated", "target")
TEXTS_OR_NONE = ("upstream_commit", "upstream_date", "fixed_in")
EDITS = (Add, Before, Replace, Requires, Substitute)


def records(files: str, series: Sequence[Patch]) -> tuple[Patch, ...]:
    """The records of ``files``, which ``os.pathsep`` separates, in order.

    Raises ``SettingsError`` that names file, record and next step when one cannot be read, or when
    a record is not one that can be judged beside those of ``series``.
    """
    found: list[Patch] = []
    names = [name for name in files.split(os.pathsep) if name.strip()]
    for number, name in enumerate(names):
        file = os.path.abspath(name.strip())
        for patch in _patches(file, _executed(file, number)):
            _check(file, patch, names_of([*series, *found]))
            found.append(patch)
    return tuple(found)


def _error(file: str, why: str) -> SettingsError:
    return SettingsError(f"{RECORDS}: {file}: {why}")


def _executed(file: str, number: int) -> ModuleType:
    """The module of a file, which is in ``sys.modules`` for who asks for its source."""
    try:
        text = read_data(file)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise _error(
            file,
            f"cannot be read: {why}; expected Python files that define PATCHES, separated by "
            f"{os.pathsep!r}",
        ) from error
    module = ModuleType(f"{PACKAGE}_records_{number}")
    # As in a module of its own: what it imports from us is this copy, whatever the name of that is.
    hidden = {**vars(builtins), "__import__": _import}
    vars(module).update(__file__=file, __builtins__=hidden)
    sys.modules[module.__name__] = module
    try:
        exec(compile(text, file, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        where = f", line {line}" if (line := _line(file, error)) else ""
        raise _error(file + where, f"{_why(error)}; correct the file, or take it out") from error
    return module


def _why(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # of its own `__str__`
        return type(error).__name__


def _line(file: str, error: BaseException) -> int | None:
    """The last line of ``file`` that was executed, or that which does not parse."""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == file else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _import(name: str, *arguments: Any, **options: Any) -> Any:
    head, dot, rest = name.partition(".")
    return builtins.__import__(
        PACKAGE + dot + rest if head == USUAL_NAME else name, *arguments, **options
    )


def _patches(file: str, module: ModuleType) -> tuple[Patch, ...]:
    found = getattr(module, "PATCHES", None)
    if not isinstance(found, tuple) or not all(isinstance(patch, Patch) for patch in found):
        raise _error(
            file, f"PATCHES is {found!r:.60}; expected a tuple of megatron_patch.model.Patch"
        )
    return found


def _check(file: str, patch: Patch, taken: Collection[str]) -> None:
    """Raise ``SettingsError`` when ``patch`` is not a record that can be judged."""
    try:
        why = next(_faults(patch, taken), None)
    except Exception as error:  # what a field that is not what it should be leads to
        why = f"{_why(error)}; correct the record, or take it out"
    if why is not None:
        raise _error(f"{file}: record {patch.id!r}", why)


def _faults(patch: Patch, taken: Collection[str]) -> Iterator[str]:
    if not isinstance(patch.id, str) or not ID.fullmatch(patch.id):
        yield "expected an id of small letters, digits and '-'"
    if patch.id in taken:
        yield "there is a record or a group of that name already; give it another id"
    for name in TEXTS:
        if not isinstance(getattr(patch, name), str):
            yield f"its {name} is {getattr(patch, name)!r:.60}; expected text"
    for name in TEXTS_OR_NONE:
        if not isinstance(getattr(patch, name), (str, type(None))):
            yield f"its {name} is {getattr(patch, name)!r:.60}; expected text or None"
    if not isinstance(patch.upstream_pr, (int, type(None))):
        yield f"its upstream_pr is {patch.upstream_pr!r:.60}; expected a number or None"
    if not isinstance(patch.kind, Kind):
        yield f"its kind is {patch.kind!r}; expected a megatron_patch.model.Kind"
    for day in filter(None, (patch.updated, patch.upstream_date)):
        date.fromisoformat(day)
    if not patch.variants:
        yield "it has no variants; expected one at least"
    if len({variant.name for variant in patch.variants}) < len(patch.variants):
        yield "two variants have one name; give each its own"
    for variant in patch.variants:
        yield from _faults_of_edits(variant)
    if not patch.sources:
        yield (
            "it has no sources, so no source is known for it; expected a "
            "megatron_patch.model.Source for each source that it has been tried on, with the "
            "digests that `megatron-patch check` prints"
        )
    for target in patch.targets:
        Target.parse(target)
    for source in patch.sources or ():
        yield from _faults_of_source(patch, source)


def _faults_of_edits(variant: Variant) -> Iterator[str]:
    """What is wrong with edits; raises what reading their code raises."""
    for edit in variant.edits:
        if not isinstance(edit, EDITS):
            yield f"{edit!r:.60} is no edit of megatron_patch.edits"
        Target.parse(edit.target)
        _read_code(edit)
    if not variant.edits:
        yield f"variant {variant.name!r} has no edits; expected one at least"


def _read_code(edit: Edit) -> None:
    if isinstance(edit, Substitute):
        ast.parse(edit.find)
        ast.parse(edit.put)
    elif isinstance(edit, Before):
        ast.parse(edit.statements)
    elif isinstance(edit, Replace):
        ast.parse(source_of(edit.function))
    elif isinstance(edit, Add):
        ast.parse(edit.source)


def _faults_of_source(patch: Patch, source: Source) -> Iterator[str]:
    if not isinstance(source, Source):
        yield f"{source!r:.60} is no megatron_patch.model.Source"
    if source.proved not in TOLD:
        variant_of(patch, source)
    if not source.digests and source.proved in TOLD:
        yield f"{source.releases} is known without a digest; expected one at least"
    for target, digest in source.digests:
        if not DIGEST.fullmatch(digest):
            yield (
                f"{digest!r} is no digest of {target}; expected 16 hexadecimal digits, as "
                "`megatron-patch check` prints them"
            )
        if target not in patch.targets:
            yield f"{target} has a digest and no edit; name it in told_by, or take it out"
