"""Edit a definition's source text by its syntax tree.

Every text edit is proved by the tree: after the edit, the parsed text must equal the original
tree with the intended nodes exchanged. Formatting and comments elsewhere stay byte for byte.
"""

from __future__ import annotations

import ast
import copy
import textwrap
from dataclasses import replace as dataclass_replace
from typing import Any

from .definitions import Definition, first_line, last_line, lines_of
from .edits import METAVARIABLE, Before, Replace, Substitute, source_of
from .errors import RewriteError
from .fingerprint import FunctionNode, FunctionTree, equal, without_docstring
from .matching import Bindings, exchanged, places, with_field


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
    expected = with_field(old, "body", new.body)
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


def takes(definition: Definition, edit: Before) -> bool:
    """Whether a plain method is called with what the hook takes, and runs when it is called."""
    node = definition.node
    return (
        isinstance(node, ast.FunctionDef)
        and not node.decorator_list
        and _parameters(edit) == _first_parameter(definition)
        and _has_room(node)
        and not any(map(_suspends, node.body))
    )


def _suspends(node: ast.AST) -> bool:
    """Whether the function that has ``node`` in its body is a generator for that."""
    if isinstance(node, (ast.Yield, ast.YieldFrom)):
        return True
    # What is in the body of a function in it is of that one; its defaults and decorators are not.
    inside = node.body if isinstance(node, (*FunctionNode, ast.Lambda)) else None
    bodies = inside if isinstance(inside, list) else [inside]
    return any(_suspends(child) for child in ast.iter_child_nodes(node) if child not in bodies)


def _has_room(node: FunctionTree) -> bool:
    """Whether there is a statement to put a hook in front of, and it begins a line of its own."""
    body = without_docstring(node)
    doc = node.body[: len(node.body) - len(body)]
    return bool(body) and all(d.end_lineno != body[0].lineno for d in doc)


def _first_parameter(definition: Definition) -> list[str]:
    arguments = definition.node.args
    return [a.arg for a in (*arguments.posonlyargs, *arguments.args)][:1]


def _parameters(edit: Before) -> list[str]:
    return list(edit.hook.__code__.co_varnames[: edit.hook.__code__.co_argcount])


def _prefixed(definition: Definition, edit: Before) -> Definition:
    node = definition.node
    takes, first = _parameters(edit), _first_parameter(definition)
    if takes != first:
        raise _fail(definition, f"the hook takes {takes}; the target's first is {first}")
    skip = 1 if ast.get_docstring(node, clean=False) is not None else 0
    statements = ast.parse(edit.statements).body
    expected = with_field(node, "body", [*node.body[:skip], *statements, *node.body[skip:]])
    if len(node.body) == skip:
        raise _fail(definition, "there is no statement to put the hook in front of")
    lines = lines_of(definition.segment)
    first_statement = node.body[skip]
    row = first_statement.lineno - definition.first_line
    column = len(lines[row].encode()[: first_statement.col_offset].decode())
    before, after = lines[row][:column], lines[row][column:]
    if before.strip():  # `def f(self): return 1`: open a suite of its own
        margin = _margin(lines[node.lineno - definition.first_line]) + "    "
        lines[row] = before.rstrip() + "\n" + indented(edit.statements, margin) + margin + after
    else:
        row = first_line(first_statement) - definition.first_line
        # The lines of a docstring may begin in any way.
        top = last_line(node.body[0]) - definition.first_line + 1 if skip else 0
        while row > top and lines[row - 1].lstrip().startswith("#"):
            row -= 1  # a comment above the first statement belongs to that statement
        lines.insert(row, indented(edit.statements, before))
    return _checked(definition, "".join(lines), expected)


def occurrences(definition: Definition, edit: Substitute) -> int:
    """How often the code that ``edit`` looks for is in the definition."""
    return len(places(definition.node, edit.find, edit.put))


def _substituted(definition: Definition, edit: Substitute) -> Definition:
    tree = definition.node
    found = places(tree, edit.find, edit.put)
    if len(found) != 1:
        times = f"found {len(found)} times" if found else "not found"
        raise _fail(definition, f"expected `{as_written(edit.find)}` exactly once; {times}")
    (place,) = found
    lines = lines_of(definition.segment)
    start, end = _span(definition, lines, place.nodes[0], place.nodes[-1])
    is_all_of_its_block = place.body is not None and len(place.body) == len(place.nodes)
    expected = exchanged(tree, place, edit.put)
    before, after = definition.segment[:start], definition.segment[end:]
    put = _filled(definition, lines, edit.put.strip("\n"), place.bindings)
    margin = before[before.rfind("\n") + 1 :]
    if place.body is None:
        put = _hanging(put.strip(), _margin(margin + "."))
        try:
            return _checked(definition, before + put + after, expected)
        except RewriteError:
            # Operators of the surroundings may bind tighter than those of the new expression.
            return _checked(definition, before + "(" + put + ")" + after, expected)
    if margin.strip():
        raise _fail(definition, f"`{as_written(edit.find)}` shares its line with other code")
    if put.strip():
        return _checked(
            definition, before + indented(put, margin).removeprefix(margin) + after, expected
        )
    if is_all_of_its_block:
        raise _fail(
            definition, f"`{as_written(edit.find)}` is all of its block; put `pass` in its place"
        )
    return _checked(definition, before.removesuffix(margin) + after.lstrip("\n"), expected)


def as_written(code: str) -> str:
    """Code of a hunk as its file has it."""
    return code.strip().replace(METAVARIABLE, "$")


def _filled(definition: Definition, lines: list[str], put: str, bindings: Bindings) -> str:
    """``put`` with what the source has in the places of the metavariables, as it is written."""
    # The longest first: one may begin as another does.
    for name, node in sorted(bindings.items(), key=lambda item: -len(item[0])):
        start, end = _span(definition, lines, node, node)
        margin = _margin(lines[node.lineno - definition.first_line])
        first, *others = lines_of(definition.segment[start:end])
        # All lines of the hunk get the margin of the place where it is put.
        text = first + "".join(line.removeprefix(margin) for line in others)
        put = "".join(
            line.replace(name, _hanging(text, _margin(line))) if name in line else line
            for line in lines_of(put)
        )
    return put


def _hanging(text: str, margin: str) -> str:
    """``text`` with ``margin`` before all lines but the first."""
    first, *others = lines_of(text)
    return first + indented("".join(others), margin)


def _span(definition: Definition, lines: list[str], first: Any, last: Any) -> tuple[int, int]:
    """Offsets in the segment's characters of two nodes' start and end."""

    def offset(line: int, column: int) -> int:
        row = line - definition.first_line
        return sum(map(len, lines[:row])) + len(lines[row].encode()[:column].decode())

    return offset(first.lineno, first.col_offset), offset(last.end_lineno, last.end_col_offset)
