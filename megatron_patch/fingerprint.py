"""Digest a syntax tree, and compare two. Nothing is imported or executed.

The digest is that of a definition's syntax tree without docstring, comments, formatting and
positions. It is the same on Python 3.10 to 3.13, which ``ast.dump`` is not: fields that are
empty, or that only some versions have, are left out, and f-strings are brought to one form.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Union

FunctionNode = (ast.FunctionDef, ast.AsyncFunctionDef)
FunctionTree = Union[ast.FunctionDef, ast.AsyncFunctionDef]
#: Types of leaves whose equal values have one canonical form. Not `float`: 0.0 is -0.0.
PLAIN = (str, int, bool, type(None))


def digest(node: ast.AST) -> str:
    """16 hexadecimal digits that are equal for equal syntax trees, docstring left out."""
    return hashlib.sha256(canonical(node).encode("ascii")).hexdigest()[:16]


def canonical(node: object) -> str:
    """A text form of a syntax tree that does not depend on the version of Python."""
    parts: list[str] = []
    _write(node, parts.append)
    return "".join(parts)


def _write(node: object, put: Callable[[str], None]) -> None:
    """``put`` the canonical form of ``node`` piece by piece: faster than to join at each depth."""
    if isinstance(node, list):
        put("[")
        for index, item in enumerate(node):
            if index:
                put(",")
            _write(item, put)
        put("]")
        return
    if not isinstance(node, ast.AST):
        # ascii(): what repr() prints as it is depends on the Unicode tables of the interpreter.
        put(f"{type(node).__name__}:{node!a}")
        return
    if isinstance(node, ast.JoinedStr):
        put("JoinedStr(")
        _write(_joined(node), put)
        put(")")
        return
    put(f"{type(node).__name__}(")
    separator = ""
    for name in counted(node._fields):
        value = getattr(node, name, None)
        if name == "body" and isinstance(node, FunctionNode):
            value = without_docstring(node)
        if name == "format_spec" and isinstance(value, ast.JoinedStr) and not _joined(value):
            continue
        if (value is None and not isinstance(node, ast.Constant)) or value == []:
            continue
        put(f"{separator}{name}=")
        _write(value, put)
        separator = ","
    put(")")


def equal(one: Any, other: Any) -> bool:
    """Whether two trees of one Python, or lists of them, have the same canonical form.

    Most differ soon, which is seen long before a canonical form is made.
    """
    kind = type(one)
    if kind is not type(other):
        return False
    if one is other:  # as two trees have one `Load` or `Add`
        return True
    if kind in PLAIN:
        return bool(one == other)
    if kind is list:
        return len(one) == len(other) and all(map(equal, one, other))
    if not isinstance(one, ast.AST) or kind is ast.JoinedStr:
        return canonical(one) == canonical(other)
    for name in counted(one._fields):
        if name == "body" and isinstance(one, FunctionNode):
            if not equal(without_docstring(one), without_docstring(other)):
                return False
        elif not equal(getattr(one, name, None), getattr(other, name, None)):
            return False
    return True


@cache
def counted(fields: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a node's fields that count, of whatever it is."""
    return tuple(name for name in fields if name not in ("type_comment", "kind"))


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree, in any order, sooner than ``ast.walk`` gives them."""
    todo = [node]
    while todo:
        node = todo.pop()
        yield node
        for value in vars(node).values():
            if isinstance(value, ast.AST):
                todo.append(value)
            elif type(value) is list:
                todo += [item for item in value if isinstance(item, ast.AST)]


def without_docstring(node: FunctionTree) -> list[ast.stmt]:
    """The statements of a function, its docstring left out."""
    first = node.body[0] if node.body else None
    has_docstring = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    return node.body[1:] if has_docstring else node.body


def _joined(node: ast.JoinedStr) -> list[ast.expr]:
    """The parts of an f-string with neighbouring literals merged and empty ones dropped."""
    parts: list[ast.expr] = []
    for part in node.values:
        if isinstance(part, ast.Constant):
            if part.value == "":
                continue
            if parts and isinstance(parts[-1], ast.Constant):
                parts[-1] = ast.Constant(str(parts[-1].value) + str(part.value))
                continue
            part = ast.Constant(part.value)
        parts.append(part)
    return parts
