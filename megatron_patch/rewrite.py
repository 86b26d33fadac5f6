"""Edit a definition's source text by its syntax tree.

Every text edit is proved by the tree: after the edit, the parsed text must equal the original
tree with the intended nodes exchanged. Formatting and comments elsewhere stay byte for byte.
"""

from __future__ import annotations

import ast
import copy
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from typing import Any, cast

from .errors import RewriteError
from .fingerprint import (
    Definition,
    FunctionTree,
    equal,
    lines_of,
    statements_of,
    without_docstring,
)
from .model import Before, Edit, Replace, Substitute, source_of


def edited(definition: Definition, edit: Replace | Before | Substitute) -> Definition:
    """The definition after one edit. Raises ``RewriteError`` when the edit does not fit."""
    if isinstance(edit, Replace):
        return _replaced(definition, edit)
    if isinstance(edit, Before):
        return _prefixed(definition, edit)
    return _substituted(definition, edit)


def _fail(definition: Definition, why: str) -> RewriteError:
    return RewriteError(f"{definition.module}:{definition.qualname}: {why}")


def indented(text: str, prefix: str) -> str:
    """``text`` with ``prefix`` before each line that is not blank."""
    return "".join(prefix + line if line.strip() else line for line in lines_of(text))


def _margin(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _checked(definition: Definition, segment: str, expected: ast.AST) -> Definition:
    """The definition with a new segment, if that parses to the expected tree."""
    result = dataclass_replace(definition, segment=segment)
    try:
        same = equal(result.node, expected)
    except SyntaxError as error:
        raise _fail(definition, f"the edited source does not parse: {error}") from error
    if not same:
        raise _fail(definition, "the edited text is not the intended edit of the syntax tree")
    return result


def _replaced(definition: Definition, edit: Replace) -> Definition:
    old, text = definition.node, source_of(edit.function)
    new = ast.parse(text).body[0]
    if not isinstance(new, type(old)):
        raise _fail(definition, f"the replacement is a {type(new).__name__}")
    if not equal(_bare(new.args), _bare(old.args)):
        raise _fail(
            definition,
            f"the signature is ({ast.unparse(old.args)}); "
            f"the replacement has ({ast.unparse(new.args)})",
        )
    expected = _with(old, "body", new.body)
    lines = lines_of(definition.segment)
    row = old.body[0].lineno - definition.first_line
    column = len(lines[row].encode()[: old.body[0].col_offset].decode())
    margin = lines[row][:column]
    head = lines[:row]
    if margin.strip():  # `def f(self): return 1`
        head.append(margin.rstrip() + "\n")
        margin = _margin(margin) + "    "
    body = textwrap.dedent("".join(lines_of(text)[new.body[0].lineno - 1 :]))
    return _checked(definition, "".join(head) + indented(body, margin), expected)


def _bare(arguments: ast.arguments) -> ast.arguments:
    arguments = copy.deepcopy(arguments)
    for node in ast.walk(arguments):
        if isinstance(node, ast.arg):
            node.annotation = None
    return arguments


def _prefixed(definition: Definition, edit: Before) -> Definition:
    node = definition.node
    first_parameter = [a.arg for a in (*node.args.posonlyargs, *node.args.args)][:1]
    hook_parameters = list(edit.hook.__code__.co_varnames[: edit.hook.__code__.co_argcount])
    if hook_parameters != first_parameter:
        raise _fail(
            definition, f"the hook takes {hook_parameters}; the target's first is {first_parameter}"
        )
    skip = 1 if ast.get_docstring(node, clean=False) is not None else 0
    statements = ast.parse(edit.statements).body
    expected = _with(node, "body", [*node.body[:skip], *statements, *node.body[skip:]])
    if len(node.body) == skip:
        raise _fail(definition, "there is no statement to put the hook in front of")
    lines = lines_of(definition.segment)
    row = node.body[skip].lineno - definition.first_line
    column = len(lines[row].encode()[: node.body[skip].col_offset].decode())
    before, after = lines[row][:column], lines[row][column:]
    if before.strip():  # `def f(self): return 1`: open a suite of its own
        margin = _margin(lines[row]) + "    "
        lines[row] = before.rstrip() + "\n" + indented(edit.statements, margin) + margin + after
    else:
        while lines[row - 1].lstrip().startswith("#"):
            row -= 1  # a comment above the first statement belongs to that statement
        lines.insert(row, indented(edit.statements, before))
    return _checked(definition, "".join(lines), expected)


def occurrences(definition: Definition, edit: Substitute) -> int:
    """How often the code that ``edit`` looks for is in the definition."""
    return len(_places(definition.node, edit.find, edit.put))


def _substituted(definition: Definition, edit: Substitute) -> Definition:
    tree = definition.node
    places = _places(tree, edit.find, edit.put)
    if len(places) != 1:
        found = f"found {len(places)} times" if places else "not found"
        raise _fail(definition, f"expected `{edit.find.strip()}` exactly once; {found}")
    (place,) = places
    lines = lines_of(definition.segment)
    start, end = _span(definition, lines, place.nodes[0], place.nodes[-1])
    is_all_of_its_block = place.body is not None and len(place.body) == len(place.nodes)
    expected = _exchanged(tree, place, edit.put)
    before, after = definition.segment[:start], definition.segment[end:]
    put = edit.put.strip("\n")
    if place.body is None:
        try:
            return _checked(definition, before + put.strip() + after, expected)
        except RewriteError:
            # Operators of the surroundings may bind tighter than those of the new expression.
            return _checked(definition, before + "(" + put.strip() + ")" + after, expected)
    margin = before[before.rfind("\n") + 1 :]
    if margin.strip():
        raise _fail(definition, f"`{edit.find}` shares its line with other code")
    if put.strip():
        return _checked(
            definition, before + indented(put, margin).removeprefix(margin) + after, expected
        )
    if is_all_of_its_block:
        raise _fail(definition, f"`{edit.find}` is all of its block; put `pass` in its place")
    return _checked(definition, before.removesuffix(margin) + after.lstrip("\n"), expected)


def _exchanged(node: FunctionTree, place: _Place, put: str) -> FunctionTree:
    """A tree like ``node`` with the code ``put`` at ``place``. They share what is elsewhere."""
    new = ast.parse(put).body
    if place.body is not None:
        old: object = place.body
        exchanged: Any = [
            *place.body[: place.index],
            *new,
            *place.body[place.index + len(place.nodes) :],
        ]
    else:
        assert isinstance(new[0], ast.Expr)
        (old,), exchanged = place.nodes, new[0].value

    def copied(item: Any) -> Any:
        """``item``, or a copy of it if ``old`` is in it."""
        if item is old:
            return exchanged
        if isinstance(item, list):
            for index, child in enumerate(item):
                if (new_child := copied(child)) is not child:
                    return [*item[:index], new_child, *item[index + 1 :]]
        elif isinstance(item, ast.AST):
            for name in item._fields:
                child = getattr(item, name, None)
                if (new_child := copied(child)) is not child:
                    return _with(item, name, new_child)
        return item

    return cast(FunctionTree, copied(node))


def _with(node: Any, name: str, value: object) -> Any:
    """A copy of one node of a tree, with another value in one of its fields."""
    twin = copy.copy(node)
    setattr(twin, name, value)
    return twin


@dataclass(frozen=True)
class _Place:
    """Where code was found: statements from ``index`` of ``body``, or one expression."""

    nodes: Sequence[ast.stmt | ast.expr]
    body: list[ast.stmt] | None = None
    index: int = 0


def _places(node: ast.AST, find: str, put: str) -> list[_Place]:
    """All occurrences of ``find``: as an expression if ``put`` is one too, else as statements.

    Code that begins with a comment is a statement.
    """
    found, new = statements_of(find), statements_of(put)
    first = found[0]
    bare = not any(code.lstrip().startswith("#") for code in (find, put))
    single = bare and len(found) == len(new) == 1
    if single and isinstance(first, ast.Expr) and isinstance(new[0], ast.Expr):
        return [
            _Place([child])
            for child in ast.walk(node)
            if isinstance(child, ast.expr) and equal(child, first.value)
        ]
    return [
        _Place(body[index : index + len(found)], body, index)
        for body in _bodies(node)
        for index in range(len(body) - len(found) + 1)
        if equal(body[index : index + len(found)], found)
    ]


def _bodies(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """All lists of statements in a statement; there are none in expressions."""
    for name in ("body", "orelse", "finalbody"):
        body: list[ast.stmt] = getattr(node, name, [])
        if body:
            yield body
        for statement in body:
            yield from _bodies(statement)
    for name in ("handlers", "cases"):
        for part in getattr(node, name, []):
            yield from _bodies(part)


def _span(definition: Definition, lines: list[str], first: Any, last: Any) -> tuple[int, int]:
    """Offsets in the segment's characters of two nodes' start and end."""

    def offset(line: int, column: int) -> int:
        row = line - definition.first_line
        return sum(map(len, lines[:row])) + len(lines[row].encode()[:column].decode())

    return offset(first.lineno, first.col_offset), offset(last.end_lineno, last.end_col_offset)


def undone(node: FunctionTree, edits: Sequence[Edit]) -> FunctionTree | str | None:
    """The tree that one patch's ``edits`` of one target have made ``node`` from.

    ``None`` when the edits are not in there, and the original's digest when they have replaced it
    as a whole. ``node`` is not changed.
    """
    for edit in reversed(edits):
        body = without_docstring(node)
        if isinstance(edit, Replace):
            (new,) = statements_of(source_of(edit.function))
            same = equal(without_docstring(cast(FunctionTree, new)), body)
            return edit.digest if same and edit is edits[0] else None
        if isinstance(edit, Before):
            statements = statements_of(edit.statements)
            if not equal(body[: len(statements)], statements):
                return None
            head = node.body[: len(node.body) - len(body)]
            node = _with(node, "body", [*head, *body[len(statements) :]])
        elif isinstance(edit, Substitute):
            places = _places(node, edit.put, edit.find) if edit.put.strip() else []
            if len(places) != 1:
                return None
            node = _exchanged(node, places[0], edit.find)
    return node
