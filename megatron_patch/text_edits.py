"""Make one edit in the text of a whole file; what the edit leaves alone stays byte for byte."""

from __future__ import annotations

import ast
import copy
import difflib
import itertools
import re
import textwrap
from collections.abc import Sequence

from . import definitions, rewrite, segments
from .definitions import Definition, bound_names, first_line, last_line
from .edits import Add, Edit, Requires, Target
from .errors import TargetError
from .fingerprint import FunctionNode, equal
from .model import Variant


def with_edits(module: str, text: str, edits: Sequence[Edit]) -> str:
    """``text`` with edits of functions that it has; those of one function follow each other.

    Raises ``TargetError`` or ``RewriteError`` when one does not fit.
    """
    changed: dict[str, tuple[Definition, Definition]] = {}
    for edit in edits:
        assert not isinstance(edit, (Add, Requires))
        if edit.target not in changed:
            found = _located(module, text, edit.target)
            changed[edit.target] = found, found
        old, new = changed[edit.target]
        changed[edit.target] = old, rewrite.edited(new, edit)
    lines = _lines(text)
    # From the last function to the first: those above stay where they were found.
    for old, new in sorted(changed.values(), key=lambda pair: pair[0].first_line, reverse=True):
        start = old.first_line - 1
        end = start + len(_lines(old.segment))
        lines[start:end] = _changed(lines[start:end], _lines(new.segment))
    return "".join(lines)


def with_addition(module: str, text: str, edit: Add, variant: Variant) -> str:
    """``text`` with the helper, above the first target of its class or module.

    In a class it is below that target if a default of it, or a decorator, names the target; where
    the variant has no target in the class, it is above the last method. A
    helper that is an assignment goes below the module's imports. Raises ``TargetError`` when there
    is no such place, or when the name is taken.
    """
    target = Target.parse(edit.target)
    tree = definitions.module_tree(text)
    lines = _lines(text)
    source = edit.source.strip("\n") + "\n"
    (node,) = definitions.statements_of(edit.source)
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and not target.scope:
        row = _below_imports(module, tree)
        source = "\n" + source
    else:
        anchor = _located(module, text, _neighbour(variant, module, target.scope, tree))
        if target.scope:
            row = anchor.first_line - 1
            margin = anchor.segment[: -len(anchor.segment.lstrip())]
            source = segments.indented(source, margin) + "\n"
            if anchor.node.name in _evaluated_names(source):
                row = last_line(anchor.node)
                source = "\n" + source.removesuffix("\n")
        else:
            below = next(n for n in tree.body if last_line(n) >= anchor.first_line)
            row = first_line(below, lines) - 1
            source += "\n\n"
        while row and lines[row - 1].lstrip().startswith("#"):
            row -= 1  # a comment above a definition belongs to it
    end = _line_end(lines)
    lines[row:row] = [line.removesuffix("\n") + end for line in _lines(source)]
    result = "".join(lines)
    expected = _with_definition(tree, target, [node], row)
    if not equal(definitions.module_tree(result), expected):
        raise TargetError(f"{target}: the text with the helper is not what it is meant to be")
    return result


def _with_definition(
    tree: ast.Module, target: Target, added: list[ast.stmt], row: int
) -> ast.Module:
    """A copy of ``tree`` with a definition below the line ``row``; ``tree`` stays as it is.

    Raises ``TargetError`` when its class or module has something of that name.
    """
    made = copy.copy(tree)
    scope: ast.Module | ast.ClassDef = made
    for name in filter(None, target.scope.split(".")):
        index, found = next(
            (index, node)
            for index, node in enumerate(scope.body)
            if isinstance(node, ast.ClassDef) and node.name == name
        )
        inner = copy.copy(found)
        scope.body = [*scope.body[:index], inner, *scope.body[index + 1 :]]
        scope = inner
    if target.name in bound_names(scope.body):
        raise TargetError(f"{target}: the name is taken; expected it to be free")
    index = sum(first_line(node) <= row for node in scope.body)
    scope.body = [*scope.body[:index], *added, *scope.body[index:]]
    return made


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


def _neighbour(variant: Variant, module: str, scope: str, tree: ast.Module) -> str:
    """The first edited target of the module, and of the class ``scope`` unless that is empty.

    The last method of the class if none of it is edited.
    """
    for edit in variant.edits:
        target = Target.parse(edit.target)
        inside = target.scope == scope or not scope
        if not isinstance(edit, Add) and target.module == module and inside:
            return edit.target
    body: Sequence[ast.stmt] = tree.body if scope else ()
    for name in scope.split("."):
        found = [node for node in body if isinstance(node, ast.ClassDef) and node.name == name]
        body = found[0].body if found else ()
    names = [node.name for node in body if isinstance(node, FunctionNode)]
    for name in reversed(names):
        if names.count(name) == 1:
            return f"{module}:{scope}.{name}"
    raise TargetError(f"{module}: no method of {scope or 'the module'} to put a helper next to")


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
