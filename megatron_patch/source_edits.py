"""Make the edits of the series in the source text of a tree: what export and apply are made of."""

from __future__ import annotations

import ast
import difflib
import io
import itertools
import re
import textwrap
import tokenize
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from . import definitions, rewrite
from .definitions import Definition, first_line, last_line
from .edits import Add, Edit, Requires, Target
from .errors import DriftedError, RewriteError, TargetError
from .fingerprint import equal
from .judge import judge
from .model import Patch, Variant
from .source_tree import SourceTree
from .verdicts import Judgement


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
    judgement: Judgement
    reason: str


def source_patches(
    tree: SourceTree,
    series: Sequence[Patch],
    selected: Iterable[str],
    *,
    allow_drift: bool = False,
    accepted: Mapping[str, Collection[str]] = MappingProxyType({}),
    partial: bool = False,
) -> tuple[list[SourcePatch], list[Skipped]]:
    """The edits of the ``selected`` patches that are applicable to ``tree``, in order.

    With ``allow_drift``, a patch whose source is not known is made all the same if its edits fit
    the source: a person is going to read the result. ``accepted`` are, by patch id, digests of
    source that is to be taken for known. Raises ``DriftedError``, naming the patches, when the
    source of some is not known, or when their edits do not fit it; with ``partial`` these are
    skipped as a whole. Raises ``SettingsError`` when a digest of ``accepted`` is not there.
    """
    files = _Files(tree)
    made: list[SourcePatch] = []
    skipped: list[Skipped] = []
    drifted: list[Skipped] = []
    chosen = frozenset(selected)
    for number, patch in enumerate(series, 1):
        if patch.id not in chosen:
            continue
        verdict = judge(patch, tree.read, accepted.get(patch.id, ()), series)
        variant = verdict.variant
        if variant is None and verdict.judgement is not Judgement.DRIFTED:
            skipped.append(Skipped(patch, verdict.judgement, verdict.reason))
            continue
        if variant is None and allow_drift:
            variant = verdict.closest
        if variant is None:
            drifted.append(Skipped(patch, Judgement.DRIFTED, verdict.reason))
            continue
        try:
            made.append(SourcePatch(number, patch, files.edit(variant)))
        except (RewriteError, TargetError) as error:
            drifted.append(Skipped(patch, Judgement.DRIFTED, str(error)))
    if drifted and not partial:
        raise DriftedError("\n".join(f"{entry.patch.id}: {entry.reason}" for entry in drifted))
    return made, [*skipped, *drifted]


class _Files:
    """The files of a tree as the patches so far have left them."""

    def __init__(self, tree: SourceTree) -> None:
        self._tree = tree
        self._texts: dict[str, str] = {}
        self._encodings: dict[str, str] = {}

    def edit(self, variant: Variant) -> tuple[FileEdit, ...]:
        """Make the edits of one variant; all or none.

        Raises ``TargetError`` or ``RewriteError`` when one of them does not fit.
        """
        modules = dict.fromkeys(Target.parse(edit.target).module for edit in variant.edits)
        before = {module: self._text(module) for module in modules}
        after = dict(before)
        for edit in variant.edits:
            if not isinstance(edit, (Add, Requires)):
                module = Target.parse(edit.target).module
                after[module] = with_edit(module, after[module], edit)
        # Helpers come last, so that all targets still are where the tree has them.
        for edit in variant.edits:
            if isinstance(edit, Add):
                module = Target.parse(edit.target).module
                after[module] = with_addition(module, after[module], edit, variant)
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
    """``text`` with one edit of one target.

    Raises ``TargetError`` or ``RewriteError`` when it does not fit.
    """
    assert not isinstance(edit, (Add, Requires))
    old = _located(module, text, edit.target)
    new = rewrite.edited(old, edit)
    lines = _lines(text)
    start = old.first_line - 1
    end = start + len(_lines(old.segment))
    lines[start:end] = _changed(lines[start:end], _lines(new.segment))
    return "".join(lines)


def with_addition(module: str, text: str, edit: Add, variant: Variant) -> str:
    """``text`` with the helper, above the first target of its class or module.

    In a class it is below that target if a default of it, or a decorator, names the target. A
    helper that is an assignment goes below the module's imports. Raises ``TargetError`` when there
    is no such place, or when the name is taken.
    """
    target = Target.parse(edit.target)
    tree = ast.parse(text)
    lines = _lines(text)
    source = edit.source.strip("\n") + "\n"
    if isinstance(edit.definition, str) and not target.scope:
        row = _below_imports(module, tree)
        source = "\n" + source
    else:
        anchor = _located(module, text, _first_target(variant, module, target.scope))
        if target.scope:
            row = anchor.first_line - 1
            margin = anchor.segment[: -len(anchor.segment.lstrip())]
            source = rewrite.indented(source, margin) + "\n"
            if anchor.node.name in _evaluated_names(source):
                row = last_line(anchor.node)
                source = "\n" + source.removesuffix("\n")
        else:
            row = first_line(next(n for n in tree.body if last_line(n) >= anchor.first_line)) - 1
            source += "\n\n"
        while row and lines[row - 1].lstrip().startswith("#"):
            row -= 1  # a comment above a definition belongs to it
    end = _line_end(lines)
    lines[row:row] = [line.removesuffix("\n") + end for line in _lines(source)]
    result = "".join(lines)
    body = tree.body
    for scope in filter(None, target.scope.split(".")):
        body = next(n for n in body if isinstance(n, ast.ClassDef) and n.name == scope).body
    if target.name in _bound(body):
        raise TargetError(f"{target}: the name is taken; expected it to be free")
    index = sum(first_line(node) <= row for node in body)
    body[index:index] = ast.parse(edit.source).body
    if not equal(ast.parse(result), tree):
        raise TargetError(f"{target}: the text with the helper is not what it is meant to be")
    return result


def _evaluated_names(source: str) -> set[str]:
    """The names that the definition ``source`` needs when it is run: defaults and decorators."""
    (node,) = ast.parse(textwrap.dedent(source)).body
    parts: list[ast.AST] = list(getattr(node, "decorator_list", []))
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        parts += [*node.args.defaults, *filter(None, node.args.kw_defaults)]
    return {n.id for part in parts for n in ast.walk(part) if isinstance(n, ast.Name)}


def _below_imports(module: str, tree: ast.Module) -> int:
    """The number of the last line of the imports at the top of a module."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    top = itertools.takewhile(lambda node: not isinstance(node, definitions), tree.body)
    imports = [node for node in top if isinstance(node, (ast.Import, ast.ImportFrom))]
    if not imports:
        raise TargetError(f"{module}: there are no imports to put a helper below")
    return last_line(imports[-1])


def _bound(body: Iterable[ast.AST]) -> Iterator[str]:
    """The names that statements bind in their own scope."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        else:
            yield from _bound(ast.iter_child_nodes(node))


def _first_target(variant: Variant, module: str, scope: str) -> str:
    """The first edited target of the module, and of the class ``scope`` unless that is empty."""
    for edit in variant.edits:
        target = Target.parse(edit.target)
        inside = target.scope == scope or not scope
        if not isinstance(edit, Add) and target.module == module and inside:
            return edit.target
    raise TargetError(f"{module}: no edit of {scope or 'the module'} to put a helper next to")


def _located(module: str, text: str, dotted: str) -> Definition:
    found = definitions.locate(module, text, Target.parse(dotted).qualname)
    if found is None:
        raise TargetError(f"{dotted} is not found")
    return found


def _lines(text: str) -> list[str]:
    """Lines with their ends, as the tokenizer counts them."""
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text)


def _line_end(lines: Sequence[str]) -> str:
    return next((m.group() for line in lines if (m := re.search(r"[\r\n]+$", line))), "\n")


def _changed(old: list[str], new: list[str]) -> list[str]:
    """The lines ``new``, which end in line feeds, with the ends that lines have in ``old``.

    What is equal but for its end stays byte for byte, also where ends are mixed.
    """
    end = _line_end(old)
    open_ended = not old[-1].endswith(("\r", "\n"))
    if open_ended:
        old = [*old[:-1], old[-1] + end]
    bare = [line.rstrip("\r\n") + "\n" for line in old]
    lines: list[str] = []
    matcher = difflib.SequenceMatcher(None, bare, new, autojunk=False)
    for tag, start, stop, first, last in matcher.get_opcodes():
        put = [line.removesuffix("\n") + end for line in new[first:last]]
        lines += old[start:stop] if tag == "equal" else put
    if open_ended:
        lines[-1] = lines[-1].removesuffix(end)
    return lines
