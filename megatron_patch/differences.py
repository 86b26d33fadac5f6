"""Show where source that is not known differs from what a patch expects, for a person to read.

Code is compared as ``ast.unparse`` writes it, so only differences that matter are left.
"""

from __future__ import annotations

import ast
import difflib
import textwrap
from collections.abc import Iterator, Sequence
from typing import Union

from .definitions import Definition, statements_of
from .edits import METAVARIABLE, Before, Edit, Replace, Requires, Substitute, source_of
from .errors import TargetError
from .fingerprint import FunctionTree, without_docstring
from .folding import WIDTH, folded
from .matching import bodies, match, places, with_field
from .source_tree import SourceTree
from .substituting import as_written
from .verdicts import Judgement, Miss, find_definition

Nodes = Sequence[Union[ast.stmt, ast.expr]]

#: How many of the likeliest stretches of a method are compared letter by letter.
CANDIDATES = 8


def differences(judgement: Judgement, tree: SourceTree, against: SourceTree | None = None) -> str:
    """Why ``judgement`` on ``tree`` is drifted: lines about each target that is not known.

    With ``against``, they are the difference to the same target in that tree. Without it, they name
    each edit of the closest variant, with a difference where the edit does not fit.
    """
    lines: list[str] = []
    for miss in dict.fromkeys(judgement.misses):
        if miss.definition is None:
            lines += folded(f"{miss.target} is not there.")
            continue
        known = None if against is None else _definition(miss.target, against)
        if known is not None and against is not None:
            lines += _against(miss, miss.definition, tree, known, against)
            continue
        if against is not None:
            lines += folded(f"{against.root} has no {miss.target}.")
        edits = judgement.closest.edits if judgement.closest is not None else ()
        for edit in edits:
            if edit.target == miss.target:
                lines += _of_edit(edit, miss.definition, tree)
    return "\n".join(lines)


def _definition(target: str, tree: SourceTree) -> Definition | None:
    try:
        return find_definition(target, tree.read)
    except (TargetError, SyntaxError, UnicodeError):
        return None


def _against(
    miss: Miss, found: Definition, tree: SourceTree, known: Definition, against: SourceTree
) -> Iterator[str]:
    if known.digest == found.digest:
        yield from folded(f"{miss.target} is the same in {against.root}.")
        return
    if miss.expected not in (None, known.digest):
        yield from folded(
            f"{miss.target} in {against.root} has digest {known.digest}; the nearest known source "
            f"has {miss.expected}: take a tree of that source to see this difference alone."
        )
    yield from _unified(
        _lines(_bare(known.node)),
        _lines(_bare(found.node)),
        f"known: {_place(against, known)}",
        f"here: {_place(tree, found)}",
    )


def _of_edit(edit: Edit, found: Definition, tree: SourceTree) -> Iterator[str]:
    where = _place(tree, found)
    if isinstance(edit, Substitute):
        yield from _of_substitute(edit, found, tree)
    elif isinstance(edit, Replace):
        yield from folded(
            f"{edit.target}: the patch puts a whole method in the place of this one. What it would "
            "take away and put there:"
        )
        (new,) = statements_of(source_of(edit.function))
        assert isinstance(new, (ast.FunctionDef, ast.AsyncFunctionDef))
        whole = with_field(found.node, "body", new.body)
        yield from _unified(
            _lines(_bare(found.node)), _lines(_bare(whole)), f"here: {where}", "the patch"
        )
    elif isinstance(edit, Before):
        yield from folded(f"{where}: the patch puts this in front of the first statement:")
        yield from marked("+", edit.statements.splitlines())
    elif isinstance(edit, Requires):
        yield from folded(f"{where}: changed, and the patch relies on it: {edit.why}")


def _of_substitute(edit: Substitute, found: Definition, tree: SourceTree) -> Iterator[str]:
    there = places(found.node, edit.find, edit.put)
    if len(there) == 1:
        line = there[0].nodes[0].lineno
        yield from folded(f"{_place(tree, found, line)}: this edit fits:")
        yield from marked(" ", as_written(edit.find).splitlines())
    elif there:
        times = f"{len(there)} times"
        yield from folded(f"{_place(tree, found)}: this is there {times}; expected once:")
        yield from marked(" ", as_written(edit.find).splitlines())
    else:
        expected, closest = _closest(edit, found.node)
        where = _place(tree, found, closest[0].lineno)
        yield from folded(f"{where}: this edit does not fit; the closest code there:")
        lines = [line for node in closest for line in _lines(node)]
        yield from _unified(expected, lines, "what the patch looks for", f"here: {where}")


def _closest(edit: Substitute, node: FunctionTree) -> tuple[list[str], Nodes]:
    """The lines that ``edit`` looks for, and the nodes that are most like them.

    In statements that do match, each metavariable is replaced by what it stands for.
    """
    pattern: Nodes = statements_of(edit.find)
    new = statements_of(edit.put)
    found: list[Nodes]
    if len(pattern) == len(new) == 1 and isinstance(new[0], ast.Expr):
        # The edit may be of an expression.
        pattern = [part.value if isinstance(part, ast.Expr) else part for part in pattern]
    if isinstance(pattern[0], ast.expr):
        kind = type(pattern[0])
        found = [[child] for child in ast.walk(node) if isinstance(child, kind)]
    else:
        found = []
    best = _most_like(pattern, found or list(_stretches(node, len(pattern))))
    expected: list[str] = []
    for part in pattern:
        same = next((other for other in best if match([part], [other]) is not None), part)
        expected += _lines(same)
    return expected, best


def _stretches(node: FunctionTree, size: int) -> Iterator[Nodes]:
    """Consecutive statements, about ``size`` of them."""
    for body in bodies(node):
        for length in range(max(1, size - 1), size + 3):
            for index in range(len(body) - length + 1):
                yield body[index : index + length]


def _most_like(pattern: Nodes, options: Sequence[Nodes]) -> Nodes:
    wanted = _text(pattern)
    rows = [line.strip() for line in wanted.splitlines()]

    def at_first_sight(option: Nodes) -> float:
        text = _text(option)
        lines = [line.strip() for line in text.splitlines()]
        letters = difflib.SequenceMatcher(None, wanted, text, False).quick_ratio()
        return difflib.SequenceMatcher(None, rows, lines, False).ratio() + letters

    def likeness(option: Nodes) -> float:
        text = _text(option)
        letters = difflib.SequenceMatcher(None, wanted, text, False)
        if isinstance(pattern[0], ast.expr):
            return letters.ratio()
        common = sum(block.size for block in letters.get_matching_blocks())
        # One more line has to be worth it.
        return common / len(wanted) - 0.3 * len(text.splitlines()) / len(rows)

    return max(sorted(options, key=at_first_sight, reverse=True)[:CANDIDATES], key=likeness)


def _text(nodes: Nodes) -> str:
    return "\n".join(line for node in nodes for line in _lines(node))


def _lines(node: ast.AST) -> list[str]:
    return ast.unparse(node).replace(METAVARIABLE, "$").splitlines()


def _bare(node: FunctionTree) -> FunctionTree:
    """The function without its docstring, which is never compared."""
    body = without_docstring(node)
    bare: FunctionTree = with_field(node, "body", body or node.body)
    return bare


def _place(tree: SourceTree, found: Definition, line: int | None = None) -> str:
    """File and line; the file from the root of its tree."""
    path = tree.path(found.module)
    name = found.module if path is None else path.relative_to(tree.root).as_posix()
    return f"{name}:{line or found.first_line}"


def _unified(old: Sequence[str], new: Sequence[str], a: str, b: str) -> Iterator[str]:
    for line in difflib.unified_diff(old, new, a, b, lineterm=""):
        if line.startswith(("--- ", "+++ ", "@@ ")):
            yield line
        else:
            yield from marked(line[0], [line[1:]])


def marked(sign: str, lines: Sequence[str]) -> Iterator[str]:
    """Lines behind a sign, the long ones folded, with the sign before each part."""
    for line in lines:
        margin = line[: len(line) - len(line.lstrip())]
        parts = textwrap.wrap(
            line.strip(),
            WIDTH - 1,
            initial_indent=margin,
            subsequent_indent=f"{margin}    ",
            break_on_hyphens=False,
        )
        yield from (f"{sign}{part}" for part in parts or [""])
