"""Find a definition in source text, and digest it. Nothing is imported or executed.

The digest is that of a definition's syntax tree without docstring, comments, formatting and
positions. It is the same on Python 3.10 to 3.13, which ``ast.dump`` is not: fields that are
empty, or that only some versions have, are left out, and f-strings are brought to one form.
"""

from __future__ import annotations
import __future__

import ast
import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Union

from .errors import TargetError

FunctionNode = (ast.FunctionDef, ast.AsyncFunctionDef)
FunctionTree = Union[ast.FunctionDef, ast.AsyncFunctionDef]
#: Types of leaves whose equal values have one canonical form. Not `float`: 0.0 is -0.0.
PLAIN = (str, int, bool, type(None))


def parse(text: str) -> ast.Module:
    """The syntax tree of source text. Raises ``SyntaxError`` when it does not parse."""
    with warnings.catch_warnings():
        # Such as invalid escapes: the module's own import has its say on them. They are no
        # SyntaxWarning before Python 3.12.
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except ValueError as error:  # null characters, before Python 3.12
            raise SyntaxError(str(error)) from error


@lru_cache(maxsize=16)
def _parse_module(text: str) -> tuple[ast.Module, list[str], int, tuple[str, ...]]:
    """The tree, the lines, and what the compiler looks at besides a definition."""
    tree = parse(text)
    # Not str.splitlines: the tokenizer does not take form feeds and the like for line ends.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return tree, lines, _future_flags(tree), tuple(_imported_names(tree.body))


def lines_of(text: str) -> list[str]:
    """Lines with their ends, as the tokenizer counts them: form feeds and the like end none."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


@dataclass(frozen=True)
class Definition:
    """One function or method in its file.

    ``segment`` is its whole lines, decorators included, with the file's indentation;
    ``first_line`` is the number (from 1) of the first of them. ``future_flags`` and
    ``imported_names`` (those bound by the module's import statements) are what else of the module
    the compiler looks at when it compiles a function.
    """

    module: str
    qualname: str
    segment: str
    first_line: int
    future_flags: int
    imported_names: tuple[str, ...]

    @cached_property
    def node(self) -> FunctionTree:
        """The syntax tree of the segment, with line numbers of the file. Not to be changed."""
        return self.parse()

    def parse(self) -> FunctionTree:
        """As :attr:`node`, another one each time."""
        indented = self.segment[:1].isspace()
        lines_above = "\n" * (self.first_line - (2 if indented else 1))
        body = parse(lines_above + ("class _:\n" if indented else "") + self.segment).body
        if indented:
            assert isinstance(body[0], ast.ClassDef)
            body = body[0].body
        if len(body) != 1 or not isinstance(body[0], FunctionNode):
            raise TargetError(f"{self.module}:{self.qualname}: shares a line with other code")
        return body[0]

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits, see :func:`digest`."""
        return digest(self.node)


@lru_cache(maxsize=256)
def locate(module: str, text: str, qualname: str) -> Definition | None:
    """Find ``Class.method`` or ``function`` in the source ``text`` of ``module``.

    Returns ``None`` when there is no such definition. Raises ``TargetError`` when there is more
    than one, or when it is not a function, and ``SyntaxError`` when the text does not parse.
    """
    tree, lines, flags, names = _parse_module(text)
    body: list[ast.stmt] = tree.body
    *scopes, name = qualname.split(".")
    for depth, scope in enumerate(scopes):
        classes = [n for n in body if isinstance(n, ast.ClassDef) and n.name == scope]
        if not classes:
            return None
        if len(classes) > 1:
            dotted = ".".join(scopes[: depth + 1])
            raise TargetError(f"{module}:{dotted} is defined {len(classes)} times; expected once")
        body = classes[0].body
    found = [n for n in body if isinstance(n, (*FunctionNode, ast.ClassDef)) and n.name == name]
    if not found:
        return None
    if len(found) > 1:
        raise TargetError(f"{module}:{qualname} is defined {len(found)} times; expected once")
    node = found[0]
    if isinstance(node, ast.ClassDef):
        raise TargetError(f"{module}:{qualname} is a class; expected a function")
    first = first_line(node)
    segment = "\n".join(lines[first - 1 : last_line(node)]) + "\n"
    return Definition(module, qualname, segment, first, flags, names)


def first_line(node: ast.stmt) -> int:
    """The number of the statement's first line, decorators included."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def last_line(node: ast.stmt) -> int:
    """The number of the statement's last line."""
    assert node.end_lineno is not None
    return node.end_lineno


@lru_cache(maxsize=512)
def statements_of(code: str) -> list[ast.stmt]:
    """The syntax trees of an edit's code. Not to be changed."""
    return ast.parse(code).body


def forget() -> None:
    """Let go of the trees that are kept because the next patch may look at the same source."""
    _parse_module.cache_clear()
    locate.cache_clear()
    statements_of.cache_clear()


def _future_flags(tree: ast.Module) -> int:
    flags = 0
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for alias in node.names:
                flags |= getattr(__future__, alias.name).compiler_flag
    return flags


def _imported_names(body: Iterable[ast.AST]) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (a.asname or a.name.partition(".")[0] for a in node.names if a.name != "*")
        elif not isinstance(node, (*FunctionNode, ast.ClassDef, ast.expr)):
            yield from _imported_names(ast.iter_child_nodes(node))


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
    for name in node._fields:
        value = getattr(node, name, None)
        if name in ("type_comment", "kind"):
            continue
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
    if kind in PLAIN:
        return bool(one == other)
    if kind is list:
        return len(one) == len(other) and all(map(equal, one, other))
    if not isinstance(one, ast.AST) or kind is ast.JoinedStr:
        return canonical(one) == canonical(other)
    for name in one._fields:
        if name in ("type_comment", "kind"):
            continue
        if name == "body" and isinstance(one, FunctionNode):
            if not equal(without_docstring(one), without_docstring(other)):
                return False
        elif not equal(getattr(one, name, None), getattr(other, name, None)):
            return False
    return True


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
