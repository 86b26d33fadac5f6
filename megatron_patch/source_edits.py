"""Make the edits of the series in the source text of a tree: what export and apply are made of."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from . import fingerprint, rewrite
from .errors import DriftedError, TargetError
from .fingerprint import Definition
from .judge import judge
from .model import Add, Edit, Family, Patch, State, Target
from .sources import SourceTree


@dataclass(frozen=True)
class FileEdit:
    """One file before and after one patch; ``path`` is relative to the tree's root, with ``/``."""

    path: str
    before: bytes
    after: bytes


@dataclass(frozen=True)
class SourcePatch:
    """What one patch of the series changes in a tree that has those before it already."""

    number: int  #: its place in the whole series, from 1: the same on every tree
    patch: Patch
    files: tuple[FileEdit, ...]


@dataclass(frozen=True)
class Skipped:
    """A patch that changes nothing in a tree, and why."""

    patch: Patch
    state: State
    reason: str


def source_patches(
    tree: SourceTree,
    series: Sequence[Patch],
    selected: Iterable[str],
    *,
    allow_drift: bool = False,
) -> tuple[list[SourcePatch], list[Skipped]]:
    """The edits of the ``selected`` patches that are applicable to ``tree``, in order.

    With ``allow_drift``, a patch whose source is not known is made all the same if its edits fit
    the source: a person is going to read the result. Raises ``DriftedError``, naming the patches,
    when the source of some is not known, or when their edits do not fit it.
    """
    files = _Files(tree)
    made: list[SourcePatch] = []
    skipped: list[Skipped] = []
    drifted: list[str] = []
    chosen = frozenset(selected)
    for number, patch in enumerate(series, 1):
        if patch.id not in chosen:
            continue
        verdict = judge(patch, tree.read, series=series)
        family = verdict.family
        if family is None and verdict.state is not State.DRIFTED:
            skipped.append(Skipped(patch, verdict.state, verdict.reason))
            continue
        if family is None and allow_drift:
            family = verdict.closest
        if family is None:
            drifted.append(f"{patch.id}: {verdict.reason}")
            continue
        try:
            made.append(SourcePatch(number, patch, files.edit(family)))
        except TargetError as error:
            drifted.append(f"{patch.id}: {error}")
    if drifted:
        raise DriftedError("\n".join(drifted))
    return made, skipped


class _Files:
    """The files of a tree as the patches so far have left them."""

    def __init__(self, tree: SourceTree) -> None:
        self._tree = tree
        self._texts: dict[str, str] = {}
        self._encodings: dict[str, str] = {}

    def edit(self, family: Family) -> tuple[FileEdit, ...]:
        """Make the edits of one family; all or none."""
        modules = dict.fromkeys(Target.parse(edit.target).module for edit in family.edits)
        before = {module: self._text(module) for module in modules}
        after = dict(before)
        for edit in family.edits:
            if not isinstance(edit, Add):
                module = Target.parse(edit.target).module
                after[module] = with_edit(module, after[module], edit)
        # Helpers come last, so that all targets still are where the tree has them.
        for edit in family.edits:
            if isinstance(edit, Add):
                module = Target.parse(edit.target).module
                after[module] = with_addition(module, after[module], edit, family)
        self._texts.update(after)
        return tuple(
            FileEdit(self._path(module), self._encoded(module, old), self._encoded(module, new))
            for module, old in before.items()
            if (new := after[module]) != old
        )

    def _path(self, module: str) -> str:
        path = self._tree.path(module)
        assert path is not None
        return path.relative_to(self._tree.root).as_posix()

    def _text(self, module: str) -> str:
        """The text with the file's own line ends."""
        if module not in self._texts:
            path = self._tree.path(module)
            if path is None:
                raise TargetError(f"{module} does not exist in {self._tree.root}")
            content = path.read_bytes()
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            self._encodings[module] = encoding
            self._texts[module] = content.decode(encoding)
        return self._texts[module]

    def _encoded(self, module: str, text: str) -> bytes:
        return text.encode(self._encodings[module])


def with_edit(module: str, text: str, edit: Edit) -> str:
    """``text`` with one edit of one target. Raises ``TargetError`` when it does not fit."""
    assert not isinstance(edit, Add)
    old = _located(module, text, edit.target)
    new = rewrite.edited(old, edit)
    lines = _lines(text)
    start = old.first_line - 1
    end = start + len(_lines(old.segment))
    lines[start:end] = _like(new.segment, lines[start:end])
    return "".join(lines)


def with_addition(module: str, text: str, edit: Add, family: Family) -> str:
    """``text`` with the helper, above the definition that it is for.

    A helper that is an assignment goes below the module's imports.
    """
    target = Target.parse(edit.target)
    tree = ast.parse(text)
    lines = _lines(text)
    source = edit.source.strip("\n") + "\n"
    if target.scope:
        anchor = _located(module, text, _first_target(family, module, target.scope))
        row = anchor.first_line - 1
        depth = len(target.scope.split("."))
        source = rewrite.indented(source, "    " * depth) + "\n"
    elif isinstance(edit.definition, str):
        row = max(
            n.end_lineno or 0 for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))
        )
        source = "\n" + source
    else:
        anchor = _located(module, text, _first_target(family, module, ""))
        around = next(
            node
            for node in tree.body
            if node.lineno <= anchor.first_line <= (node.end_lineno or 0)
            or _first_line(node) == anchor.first_line
        )
        row = _first_line(around) - 1
        source += "\n\n"
    if not isinstance(edit.definition, str):
        while row and lines[row - 1].lstrip().startswith("#"):
            row -= 1  # a comment above a definition belongs to it
    lines[row:row] = _like(source, lines)
    return "".join(lines)


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _first_target(family: Family, module: str, scope: str) -> str:
    """The first edited target of the module, and of the class ``scope`` unless that is empty."""
    for edit in family.edits:
        target = Target.parse(edit.target)
        inside = target.scope == scope or not scope
        if not isinstance(edit, Add) and target.module == module and inside:
            return edit.target
    raise TargetError(f"{module}: no edit of {scope or 'the module'} to put a helper next to")


def _located(module: str, text: str, dotted: str) -> Definition:
    found = fingerprint.locate(module, text, Target.parse(dotted).qualname)
    if found is None:
        raise TargetError(f"{dotted} is not found")
    return found


def _lines(text: str) -> list[str]:
    """Lines with their ends, as the tokenizer counts them."""
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text)


def _like(segment: str, replaced: Sequence[str]) -> list[str]:
    """The segment's lines with the line ends of those that they take the place of."""
    end = next((m.group() for line in replaced if (m := re.search(r"[\r\n]+$", line))), "\n")
    lines = [line.rstrip("\n") + end for line in segment.splitlines(True)]
    if replaced and not re.search(r"[\r\n]$", replaced[-1]):
        lines[-1] = lines[-1].removesuffix(end)
    return lines
