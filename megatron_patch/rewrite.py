"""Edit a definition's source text by its syntax tree.

Every text edit is proved by the tree: after the edit, the parsed text must equal the original
tree with the intended nodes exchanged. Formatting and comments elsewhere stay byte for byte.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import replace as dataclass_replace
from typing import Any

from .errors import RewriteError
from .fingerprint import Definition, canonical
from .model import Before, Replace, Substitute, source_of


def edited(definition: Definition, edit: Replace | Before | Substitute) -> Definition:
    """The definition after one edit. Raises ``RewriteError`` when the edit does not fit."""
    if isinstance(edit, Replace):
        return _replaced(definition, edit)
    if isinstance(edit, Before):
        return _prefixed(definition, edit)
    return _substituted(definition, edit)


def _fail(definition: Definition, why: str) -> RewriteError:
    return RewriteError(f"{definition.module}:{definition.qualname}: {why}")


def _indent(text: str, prefix: str) -> str:
    return "".join(prefix + line if line.strip() else line for line in text.splitlines(True))


def _margin(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _checked(definition: Definition, segment: str, expected: ast.AST) -> Definition:
    """The definition with a new segment, if that parses to the expected tree."""
    result = dataclass_replace(definition, segment=segment)
    try:
        same = canonical(result.node) == canonical(expected)
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
    if canonical(_bare(new.args)) != canonical(_bare(old.args)):
        raise _fail(
            definition,
            f"the signature is ({ast.unparse(old.args)}); "
            f"the replacement has ({ast.unparse(new.args)})",
        )
    expected = copy.deepcopy(new)
    expected.name, expected.decorator_list = old.name, old.decorator_list
    lines = definition.segment.splitlines(True)
    head = old.lineno - definition.first_line
    text = "".join(text.splitlines(True)[new.lineno - 1 :])
    text = text.replace(f"def {new.name}(", f"def {old.name}(", 1)
    return _checked(
        definition, "".join(lines[:head]) + _indent(text, _margin(lines[head])), expected
    )


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
    lines = definition.segment.splitlines(True)
    row = node.body[skip].lineno - definition.first_line
    column = len(lines[row].encode()[: node.body[skip].col_offset].decode())
    before, after = lines[row][:column], lines[row][column:]
    if before.strip():  # `def f(self): return 1`: open a suite of its own
        margin = _margin(lines[row]) + "    "
        lines[row] = before.rstrip() + "\n" + _indent(edit.statements, margin) + margin + after
    else:
        while lines[row - 1].lstrip().startswith("#"):
            row -= 1  # a comment above the first statement belongs to that statement
        lines.insert(row, _indent(edit.statements, before))
    return _checked(definition, "".join(lines), expected)


def occurrences(definition: Definition, edit: Substitute) -> int:
    """How often the code that ``edit`` looks for is in the definition."""
    expressions = _expressions(edit)
    if expressions is not None:
        return len(_expression_places(definition, expressions[0]))
    return len(_statement_places(definition, ast.parse(edit.find).body))


def _expressions(edit: Substitute) -> tuple[ast.expr, ast.expr] | None:
    """The two expressions of an edit that puts one for another, ``None`` for other edits."""
    find, put = ast.parse(edit.find).body, ast.parse(edit.put).body
    if (
        len(find) == len(put) == 1
        and isinstance(find[0], ast.Expr)
        and isinstance(put[0], ast.Expr)
    ):
        return find[0].value, put[0].value
    return None


def _expression_places(definition: Definition, find: ast.expr) -> list[ast.expr]:
    wanted = canonical(find)
    return [
        node
        for node in ast.walk(definition.node)
        if isinstance(node, type(find)) and canonical(node) == wanted
    ]


def _statement_places(
    definition: Definition, find: list[ast.stmt]
) -> list[tuple[list[ast.stmt], int]]:
    wanted = canonical(find)
    return [
        (body, index)
        for body in _bodies(definition.node)
        for index in range(len(body) - len(find) + 1)
        if isinstance(body[index], type(find[0]))
        and canonical(body[index : index + len(find)]) == wanted
    ]


def _substituted(definition: Definition, edit: Substitute) -> Definition:
    expressions = _expressions(edit)
    if expressions is not None:
        return _substituted_expression(definition, edit, *expressions)
    find, put = ast.parse(edit.find).body, ast.parse(edit.put).body
    places = _statement_places(definition, find)
    _once(definition, edit.find, len(places))
    body, index = places[0]
    nodes = body[index : index + len(find)]
    lines = definition.segment.splitlines(True)
    start, end = _span(definition, lines, nodes[0], nodes[-1])
    margin = definition.segment[definition.segment.rfind("\n", 0, start) + 1 : start]
    if margin.strip():
        raise _fail(definition, f"`{edit.find}` shares its line with other code")
    text = _indent(edit.put.strip("\n"), margin)[len(margin) :] if put else ""
    segment = definition.segment[:start] + text + definition.segment[end:]
    if not put:
        if len(body) == len(find):
            raise _fail(definition, f"`{edit.find}` is all of its block; put `pass` in its place")
        segment = definition.segment[: start - len(margin)] + definition.segment[end:].lstrip("\n")
    # The same edit on the tree: the matched list is found again by its position.
    expected = definition.parse()
    which = next(n for n, candidate in enumerate(_bodies(definition.node)) if candidate is body)
    list(_bodies(expected))[which][index : index + len(find)] = put
    return _checked(definition, segment, expected)


def _substituted_expression(
    definition: Definition, edit: Substitute, find: ast.expr, put: ast.expr
) -> Definition:
    places = _expression_places(definition, find)
    _once(definition, edit.find, len(places))
    wanted = canonical(find)

    class Exchange(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return put if canonical(node) == wanted else self.generic_visit(node)

    expected = Exchange().visit(definition.parse())
    lines = definition.segment.splitlines(True)
    start, end = _span(definition, lines, places[0], places[0])
    before, after = definition.segment[:start], definition.segment[end:]
    try:
        return _checked(definition, before + edit.put.strip() + after, expected)
    except RewriteError:
        # Operators of the surroundings may bind tighter than those of the new expression.
        return _checked(definition, before + "(" + edit.put.strip() + ")" + after, expected)


def _bodies(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for child in ast.walk(node):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(child, name, None)
            if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
                yield body


def _once(definition: Definition, find: str, count: int) -> None:
    if count != 1:
        found = "not found" if count == 0 else f"found {count} times"
        raise _fail(definition, f"expected `{find.strip()}` exactly once; {found}")


def _span(definition: Definition, lines: list[str], first: Any, last: Any) -> tuple[int, int]:
    """Offsets in the segment's characters of two nodes' start and end."""

    def offset(line: int, column: int) -> int:
        row = line - definition.first_line
        return sum(map(len, lines[:row])) + len(lines[row].encode()[:column].decode())

    return offset(first.lineno, first.col_offset), offset(last.end_lineno, last.end_col_offset)
