"""Edit a definition's source text by its syntax tree.

Every text edit is proved by the tree: after the edit, the parsed text must equal the original
tree with the intended nodes exchanged. Formatting and comments elsewhere stay byte for byte.
"""

from __future__ import annotations

import ast
import copy
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from typing import Any, Union, cast

from .errors import RewriteError
from .fingerprint import Definition, equal, without_docstring
from .model import Before, Edit, Replace, Substitute, source_of

FunctionTree = Union[ast.FunctionDef, ast.AsyncFunctionDef]


def edited(definition: Definition, edit: Replace | Before | Substitute) -> Definition:
    """The definition after one edit. Raises ``RewriteError`` when the edit does not fit."""
    if isinstance(edit, Replace):
        return _replaced(definition, edit)
    if isinstance(edit, Before):
        return _prefixed(definition, edit)
    return _substituted(definition, edit)


def _fail(definition: Definition, why: str) -> RewriteError:
    return RewriteError(f"{definition.module}:{definition.qualname}: {why}")


def lines_of(text: str) -> list[str]:
    """Lines with their ends, as the tokenizer counts them: form feeds and the like end none."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


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
    expected = definition.parse()
    expected.body = new.body
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
    expected = definition.parse()
    expected.body[skip:skip] = ast.parse(edit.statements).body
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
    tree = definition.parse()
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


def substituted_tree(node: FunctionTree, find: str, put: str) -> FunctionTree | None:
    """``node``, changed, with the code ``put`` for ``find``; ``None`` unless that is there once."""
    places = _places(node, find, put)
    return _exchanged(node, places[0], put) if len(places) == 1 else None


def _exchanged(node: FunctionTree, place: _Place, put: str) -> FunctionTree:
    """``node``, changed, with the code ``put`` at ``place``."""
    new = ast.parse(put).body
    if place.body is not None:
        place.body[place.index : place.index + len(place.nodes)] = new
        return node
    assert isinstance(new[0], ast.Expr)
    expression = new[0].value

    class Exchange(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return expression if node is place.nodes[0] else self.generic_visit(node)

    return cast(FunctionTree, Exchange().visit(node))


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
    found, new = ast.parse(find).body, ast.parse(put).body
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
    for child in ast.walk(node):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(child, name, None)
            if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
                yield body


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
    node = copy.deepcopy(node)
    for edit in reversed(edits):
        if isinstance(edit, Replace):
            new = cast(FunctionTree, ast.parse(source_of(edit.function)).body[0])
            same = equal(without_docstring(new), without_docstring(node))
            return edit.digest if same and edit is edits[0] else None
        if isinstance(edit, Before):
            start = len(node.body) - len(without_docstring(node))
            statements = ast.parse(edit.statements).body
            if not equal(node.body[start : start + len(statements)], statements):
                return None
            del node.body[start : start + len(statements)]
        elif isinstance(edit, Substitute):
            original = substituted_tree(node, edit.put, edit.find) if edit.put.strip() else None
            if original is None:
                return None
            node = original
    return node
