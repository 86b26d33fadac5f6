"""Digest a syntax tree, and compare two. Nothing is imported or executed.

The digest is that of a definition's syntax tree without docstring, comments, formatting and
positions. It is the same on Python 3.10 to 3.13, which ``ast.dump`` is not: fields that are
empty, or that only some versions have, are left out, and f-strings are brought to one form.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Union

FunctionNode = (ast.FunctionDef, ast.AsyncFunctionDef)
FunctionTree = Union[ast.FunctionDef, ast.AsyncFunctionDef]
#: Types of leaves whose equal values have one canonical form. Not `float`: 0.0 is -0.0.
PLAIN = (str, int, bool, type(None))
#: Types of nodes below which no other node has a place in the text.
LEAVES = (ast.Name, ast.Constant)
#: Fields with contexts and operators, which have no fields themselves.
BARE = ("ctx", "op")
NONE_KNOWN: Mapping[int, str] = MappingProxyType({})


def digest(node: ast.AST, known: Mapping[int, str] = NONE_KNOWN) -> str:
    """16 hexadecimal digits that are equal for equal syntax trees, docstring left out.

    ``known`` are canonical forms, as of :func:`forms_below`.
    """
    parts: list[str] = []
    _write(node, parts.append, known)
    return hashlib.sha256("".join(parts).encode("ascii")).hexdigest()[:16]


def canonical(node: object) -> str:
    """A text form of a syntax tree that does not depend on the version of Python."""
    parts: list[str] = []
    _write(node, parts.append)
    return "".join(parts)


def forms_below(node: ast.AST) -> dict[int, str]:
    """The canonical forms of the statements in a tree, by their ``id()``, while the tree is kept.

    For the digests of many trees that share most statements with it.
    """
    found: dict[int, str] = {}
    statements = [child for child in walk(node) if isinstance(child, ast.stmt)]
    for statement in reversed(statements):  # inner ones first
        parts: list[str] = []
        _write(statement, parts.append, found)
        found[id(statement)] = "".join(parts)
    return found


def _write(node: object, put: Callable[[str], None], known: Mapping[int, str] = NONE_KNOWN) -> None:
    """Call ``put`` with each piece of the canonical form of ``node``: joining all is slow."""
    if known and (form := known.get(id(node))) is not None:
        put(form)
        return
    if isinstance(node, list):
        put("[")
        for index, item in enumerate(node):
            if index:
                put(",")
            _write(item, put, known)
        put("]")
        return
    if not isinstance(node, ast.AST):
        # ascii(): what repr() prints as it is depends on the Unicode tables of the interpreter.
        put(f"{type(node).__name__}:{node!a}")
        return
    if isinstance(node, ast.JoinedStr):
        put("JoinedStr(")
        _write(_joined(node), put, known)
        put(")")
        return
    put(f"{type(node).__name__}(")
    separator = ""
    for name in counted(type(node)):
        value = getattr(node, name, None)
        if name == "body" and isinstance(node, FunctionNode):
            value = without_docstring(node)
        if name == "format_spec" and isinstance(value, ast.JoinedStr) and not _joined(value):
            continue
        if (value is None and not isinstance(node, ast.Constant)) or value == []:
            continue
        # What most fields are takes no further call.
        if type(value) is str:
            put(f"{separator}{name}=str:{value!a}")
        elif name in BARE:
            put(f"{separator}{name}={type(value).__name__}()")
        else:
            put(f"{separator}{name}=")
            _write(value, put, known)
        separator = ","
    put(")")


def equal(one: Any, other: Any) -> bool:
    """Whether two trees of one Python, or lists of them, have the same canonical form.

    Most trees that differ do so near their start, and that is seen long before a canonical form
    would be complete.
    """
    todo = [(one, other)]
    while todo:
        one, other = todo.pop()
        if one is other:  # as two trees have one `Load` or `Add`
            continue
        kind = type(one)
        if kind is not type(other):
            return False
        if kind in PLAIN:
            if one != other:
                return False
        elif kind is list:
            if len(one) != len(other):
                return False
            todo += zip(one, other, strict=True)
        elif not isinstance(one, ast.AST) or kind is ast.JoinedStr:
            if canonical(one) != canonical(other):
                return False
        else:
            for name in counted(kind):
                if name == "body" and isinstance(one, FunctionNode):
                    todo.append((without_docstring(one), without_docstring(other)))
                    continue
                value, another = getattr(one, name, None), getattr(other, name, None)
                # What is plain, as names are, takes no further round.
                if value is another:
                    continue
                if type(value) is str is type(another):
                    if value != another:
                        return False
                    continue
                todo.append((value, another))
    return True


#: By kind of node; there are about a hundred.
_counted: dict[type[ast.AST], tuple[str, ...]] = {}
_around: dict[type[ast.AST], tuple[str, ...]] = {}


def counted(kind: type[ast.AST]) -> tuple[str, ...]:
    """Those fields of a kind of node that count for its digest."""
    found = _counted.get(kind)
    if found is None:
        found = tuple(name for name in kind._fields if name not in ("type_comment", "kind"))
        _counted[kind] = found
    return found


def around(kind: type[ast.AST]) -> tuple[str, ...]:
    """The fields of a kind of node that may have nodes with a place in the text."""
    found = _around.get(kind)
    if found is None:
        others = ("type_comment", "ctx", "op", "ops")
        is_leaf = issubclass(kind, LEAVES)
        found = () if is_leaf else tuple(name for name in kind._fields if name not in others)
        _around[kind] = found
    return found


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree that have a place in the text, in any order, and those around them.

    That is what ``ast.walk`` gives, but for contexts and operators, in less time.
    """
    todo = [node]
    while todo:
        node = todo.pop()
        yield node
        todo += below(node)


def below(node: ast.AST) -> list[ast.AST]:
    """The nodes directly below one that have a place in the text, or others with one below them."""
    found: list[ast.AST] = []
    for name in around(type(node)):
        value = getattr(node, name, None)
        if isinstance(value, list):
            found += [item for item in value if isinstance(item, ast.AST)]
        elif isinstance(value, ast.AST):
            found.append(value)
    return found


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
