"""Find code in a syntax tree, and exchange it.

Names of a pattern that begin with ``METAVARIABLE_`` stand for any expression, the same one
wherever they are.
"""

from __future__ import annotations

import ast
import copy
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from .definitions import first_line, last_line, statements_of
from .edits import METAVARIABLE
from .fingerprint import FunctionNode, FunctionTree, below, counted, equal, walk

#: What the metavariables of a pattern stand for in one place.
Bindings = Mapping[str, ast.expr]


@dataclass(frozen=True)
class Place:
    """Where code was found: statements from ``index`` of ``body``, or one expression."""

    nodes: Sequence[ast.stmt | ast.expr]
    bindings: Bindings
    body: list[ast.stmt] | None = None
    index: int = 0


def places(node: ast.AST, find: str, put: str, rows: Sequence[int] | None = None) -> list[Place]:
    """All occurrences of ``find``: as an expression if ``put`` is one too, else as statements.

    Code that begins with a comment is a statement. ``rows`` are the numbers of the lines that have
    the :func:`landmark` of ``find``, where these are known: other statements are not looked into.
    """
    found, new = statements_of(find), statements_of(put)
    first = found[0]
    bare = not any(code.lstrip().startswith("#") for code in (find, put))
    single = bare and len(found) == len(new) == 1
    if single and isinstance(first, ast.Expr) and isinstance(new[0], ast.Expr):
        kinds = ast.expr if _metavariable(first.value) else type(first.value)
        return [
            Place([child], bindings)
            for child in _nodes(node, rows)
            if isinstance(child, kinds) and (bindings := match(first.value, child)) is not None
        ]
    return [
        Place(body[index : index + len(found)], bindings, body, index)
        for body in bodies(node, rows)
        for index in range(len(body) - len(found) + 1)
        if type(body[index]) is type(first)  # which most are not
        and _may_have(body[index], rows)
        and (bindings := match(found, body[index : index + len(found)])) is not None
    ]


@lru_cache(maxsize=512)
def landmark(find: str) -> str | None:
    """The longest name in the first statement of ``find``, which is a word of its lines too.

    ``None`` if there is none.
    """
    names = [
        name
        for node in walk(statements_of(find)[0])
        for field in ("id", "attr", "arg", "name")
        if isinstance(name := getattr(node, field, None), str)
        and name.isidentifier()  # an import has dotted names
        and not name.startswith(METAVARIABLE)
    ]
    return max(names, key=len, default=None)


def _nodes(node: ast.AST, rows: Sequence[int] | None) -> Iterator[ast.AST]:
    """As ``walk``, without the statements that cannot have what is looked for."""
    todo = [node]
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.stmt) or _may_have(node, rows):
            yield node
            todo += below(node)


def _may_have(statement: ast.stmt, rows: Sequence[int] | None) -> bool:
    if rows is None or hasattr(statement, "_edited"):
        return True
    last = last_line(statement)
    index = bisect_left(rows, first_line(statement))
    return index < len(rows) and rows[index] <= last


def mark(nodes: Iterable[ast.AST]) -> None:
    """Note that the nodes are of edits, so that their lines say nothing of what is in them."""
    for node in nodes:
        for child in walk(node):
            if isinstance(child, ast.stmt):
                child._edited = True  # type: ignore[attr-defined]


def match(pattern: Any, found: Any) -> Bindings | None:
    """What the metavariables of ``pattern`` stand for in ``found``, ``None`` if it is not that."""
    bindings: dict[str, ast.expr] = {}
    return bindings if _match(pattern, found, bindings) else None


def _match(pattern: Any, found: Any, bindings: dict[str, ast.expr]) -> bool:
    if (name := _metavariable(pattern)) is not None:
        if not isinstance(found, ast.expr):
            return False
        return _same(bindings.setdefault(name, found), found)
    if isinstance(pattern, list):
        return (
            isinstance(found, list)
            and len(pattern) == len(found)
            and all(_match(one, other, bindings) for one, other in zip(pattern, found, strict=True))
        )
    if not isinstance(pattern, ast.AST) or not _has_metavariable(pattern):
        return equal(pattern, found)
    if type(pattern) is not type(found):
        return False
    return all(
        _match(getattr(pattern, name, None), getattr(found, name, None), bindings)
        for name in counted(type(pattern))
    )


def _same(one: ast.expr, other: ast.expr) -> bool:
    """Whether two expressions are equal, whether they are read or assigned to."""
    return one is other or ast.unparse(one) == ast.unparse(other)


def _metavariable(node: object) -> str | None:
    is_one = isinstance(node, ast.Name) and node.id.startswith(METAVARIABLE)
    return cast(ast.Name, node).id if is_one else None


def _has_metavariable(node: ast.AST) -> bool:
    # Asked for each node of each place: kept with the tree, which is parsed once.
    known: bool | None = getattr(node, "_has_metavariable", None)
    if known is None:
        known = any(_metavariable(child) for child in walk(node))
        node._has_metavariable = known  # type: ignore[attr-defined]
    return known


def filled(nodes: Sequence[ast.stmt], bindings: Bindings) -> list[ast.stmt]:
    """Statements with expressions in the places of the metavariables; they share the rest."""
    return [_filled(node, bindings) for node in nodes] if bindings else list(nodes)


def _filled(item: Any, bindings: Bindings) -> Any:
    if (name := _metavariable(item)) is not None:
        return _in_context(bindings[name], item.ctx)
    if isinstance(item, list):
        return [_filled(child, bindings) for child in item]
    if isinstance(item, ast.AST) and _has_metavariable(item):
        twin = copy.copy(item)
        for name in item._fields:
            setattr(twin, name, _filled(getattr(item, name, None), bindings))
        return twin
    return item


def _in_context(node: ast.expr, context: ast.expr_context) -> ast.expr:
    if type(getattr(node, "ctx", context)) is type(context):
        return node
    twin = copy.copy(node)
    twin.ctx = context  # type: ignore[attr-defined]
    return twin


def exchanged(node: FunctionTree, place: Place, put: Sequence[ast.stmt]) -> FunctionTree:
    """A tree like ``node`` with the statements ``put`` at ``place``. They share the rest.

    In ``put``, what the metavariables stand for in that place takes their own.
    """
    new = filled(put, place.bindings)
    mark(new)
    if place.body is not None:
        old: object = place.body
        other: Any = [
            *place.body[: place.index],
            *new,
            *place.body[place.index + len(place.nodes) :],
        ]
    else:
        assert isinstance(new[0], ast.Expr)
        (old,), other = place.nodes, new[0].value

    def copied(item: Any, *, by_lines: bool) -> Any:
        """``item``, or a copy of it if ``old`` is in it."""
        if item is old:
            return other
        if isinstance(item, list):
            for index, child in enumerate(item):
                if (new_child := copied(child, by_lines=by_lines)) is not child:
                    return [*item[:index], new_child, *item[index + 1 :]]
        elif isinstance(item, ast.AST) and not (by_lines and _is_elsewhere(item, place)):
            for name in item._fields:
                child = getattr(item, name, None)
                if (new_child := copied(child, by_lines=by_lines)) is not child:
                    return with_field(item, name, new_child)
        return item

    found = copied(node, by_lines=True)
    # What edits have put there has other lines than what is around it.
    return cast(FunctionTree, copied(node, by_lines=False) if found is node else found)


def _is_elsewhere(node: Any, place: Place) -> bool:
    """Whether the lines of ``node`` say that ``place`` is not in it."""
    if isinstance(node, (*FunctionNode, ast.ClassDef)) or not hasattr(node, "lineno"):
        return False  # the lines of decorators are above the others
    first, last = node.lineno, node.end_lineno
    return bool(first > place.nodes[0].lineno or place.nodes[-1].end_lineno > last)


def with_field(node: Any, name: str, value: object) -> Any:
    """A copy of one node of a tree, with another value in one of its fields."""
    twin = copy.copy(node)
    twin._edited = True  # see `mark`
    setattr(twin, name, value)
    return twin


def bodies(node: ast.AST, rows: Sequence[int] | None = None) -> Iterator[list[ast.stmt]]:
    """All lists of statements in a statement; there are none in expressions.

    Without those in statements that cannot have what is looked for, where there are ``rows``.
    """
    for name in ("body", "orelse", "finalbody"):
        body: list[ast.stmt] = getattr(node, name, [])
        if body:
            yield body
        for statement in body:
            if _may_have(statement, rows):
                yield from bodies(statement, rows)
    for name in ("handlers", "cases"):
        for part in getattr(node, name, []):
            yield from bodies(part, rows)
