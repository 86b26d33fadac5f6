"""Edit a definition's source text by its syntax tree.

Every text edit is proved by the tree: after the edit, the parsed text must equal the original
tree with the intended nodes exchanged. Formatting and comments elsewhere stay byte for byte.
"""

from __future__ import annotations

import ast
import copy
import textwrap

from .definitions import Definition, first_line, last_line, lines_of
from .edits import Before, Replace, Substitute, source_of
from .fingerprint import FunctionNode, FunctionTree, equal, without_docstring
from .matching import with_field
from .segments import checked, failure, indented, margin_of
from .substituting import substituted


def edited(definition: Definition, *edits: Replace | Before | Substitute) -> Definition:
    """The definition after edits in this order. Raises ``RewriteError`` when one does not fit."""
    hunks: list[Substitute] = []
    for edit in edits:
        if isinstance(edit, Substitute):
            hunks.append(edit)
            continue
        definition = substituted(definition, hunks)
        hunks = []
        if isinstance(edit, Replace):
            definition = _replaced(definition, edit)
        else:
            definition = _prefixed(definition, edit)
    return substituted(definition, hunks)


def _replaced(definition: Definition, edit: Replace) -> Definition:
    old, text = definition.node, source_of(edit.function)
    new = ast.parse(text).body[0]
    expected = replaced(definition, old, new)
    assert isinstance(new, FunctionNode)
    lines = lines_of(definition.segment)
    row = old.body[0].lineno - definition.first_line
    column = len(lines[row].encode()[: old.body[0].col_offset].decode())
    margin = lines[row][:column]
    head = lines[:row]
    if margin.strip():  # `def f(self): return 1`
        head.append(margin.rstrip() + "\n")
        margin = margin_of(margin) + "    "
    body = textwrap.dedent("".join(lines_of(text)[new.body[0].lineno - 1 :]))
    return checked(definition, "".join(head) + indented(body, margin), expected)


def replaced(definition: Definition, old: FunctionTree, new: ast.stmt) -> FunctionTree:
    """The tree of a function with the body of another one, which has to have the same signature.

    Raises ``RewriteError`` when it has not.
    """
    if not isinstance(new, type(old)):
        raise failure(definition, f"the replacement is a {type(new).__name__}")
    if not equal(_bare(new.args), _bare(old.args)):
        raise failure(
            definition,
            f"the signature is ({ast.unparse(old.args)}); "
            f"the replacement has ({ast.unparse(new.args)})",
        )
    tree: FunctionTree = with_field(old, "body", new.body)
    return tree


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
    """Whether ``node`` makes the function that has it in its body a generator."""
    if isinstance(node, (ast.Yield, ast.YieldFrom)):
        return True
    # What is in the body of an inner function belongs to that one; its defaults and decorators do
    # not.
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
    expected = prefixed(definition, node, edit, ast.parse(edit.statements).body)
    skip = len(node.body) - len(without_docstring(node))
    lines = lines_of(definition.segment)
    first_statement = node.body[skip]
    row = first_statement.lineno - definition.first_line
    column = len(lines[row].encode()[: first_statement.col_offset].decode())
    before, after = lines[row][:column], lines[row][column:]
    if before.strip():  # `def f(self): return 1`: open a suite of its own
        margin = margin_of(lines[node.lineno - definition.first_line]) + "    "
        lines[row] = before.rstrip() + "\n" + indented(edit.statements, margin) + margin + after
    else:
        row = first_line(first_statement, lines, definition.first_line) - definition.first_line
        # The lines of a docstring may begin in any way.
        top = last_line(node.body[0]) - definition.first_line + 1 if skip else 0
        while row > top and lines[row - 1].lstrip().startswith("#"):
            row -= 1  # a comment above the first statement belongs to that statement
        lines.insert(row, indented(edit.statements, before))
    return checked(definition, "".join(lines), expected)


def prefixed(
    definition: Definition, node: FunctionTree, edit: Before, statements: list[ast.stmt]
) -> FunctionTree:
    """The tree of a method with the statements of a hook in front of its own.

    Raises ``RewriteError`` when the hook is for another argument, or there is no statement.
    """
    takes, first = _parameters(edit), _first_parameter(definition)
    if takes != first:
        raise failure(definition, f"the hook takes {takes}; the target's first is {first}")
    body = without_docstring(node)
    if not body:
        raise failure(definition, "there is no statement to put the hook in front of")
    docstring = node.body[: len(node.body) - len(body)]
    tree: FunctionTree = with_field(node, "body", [*docstring, *statements, *body])
    return tree
