"""Find a definition in source text. Nothing is imported or executed."""

from __future__ import annotations
import __future__

import ast
import gc
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from .errors import TargetError
from .fingerprint import FunctionNode, FunctionTree, digest
from .outlines import outline_of


@contextmanager
def no_search_for_garbage() -> Iterator[None]:
    """A context, or a decorator, for reading much source: the garbage collector is off meanwhile.

    Searching the trees for garbage, of which they have none, would take up to half as long as all
    the rest.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def parse(text: str) -> ast.Module:
    """The syntax tree of source text. Raises ``SyntaxError`` when it does not parse."""
    with warnings.catch_warnings():
        # Warnings, of invalid escapes for example, are left to the module's own import. Before
        # Python 3.12 they are no SyntaxWarning.
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except ValueError as error:  # null characters, before Python 3.12
            raise SyntaxError(str(error)) from error


@lru_cache(maxsize=16)
def _parse_module(text: str) -> tuple[ast.Module, int, tuple[str, ...]]:
    """The tree, and the future flags and imported names that a definition is compiled with."""
    tree = parse(text)
    return tree, _future_flags(tree), tuple(_imported_names(tree.body))


def module_tree(text: str) -> ast.Module:
    """The tree of a whole file, which others hold too: not to be changed.

    Raises ``SyntaxError`` when the text does not parse.
    """
    return _parse_module(text)[0]


@lru_cache(maxsize=16)
def _rows_of(text: str) -> list[str]:
    # Not str.splitlines: the tokenizer does not take form feeds and the like for line ends.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def lines_of(text: str) -> list[str]:
    """Lines with their ends, as the tokenizer counts them: form feeds and the like end none."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


@dataclass(frozen=True)
class Definition:
    """One function or method in its file.

    ``segment`` is all of its lines, decorators included, with the file's indentation;
    ``first_line`` is the number (from 1) of the first of them. ``future_flags`` and
    ``imported_names`` (those that the module's import statements bind) are what the compiler needs
    of the module besides the function. ``found`` is the function in the file's syntax tree, where
    the segment is that of the file.
    """

    module: str
    qualname: str
    segment: str
    first_line: int
    future_flags: int
    imported_names: tuple[str, ...]
    found: FunctionTree | None = field(default=None, compare=False, repr=False)

    @cached_property
    def node(self) -> FunctionTree:
        """The syntax tree of the segment, with line numbers of the file. Not to be changed."""
        return self._parsed() if self.found is None else self.found

    @property
    def is_parsed(self) -> bool:
        """Whether :attr:`node` is there already."""
        return self.found is not None or "node" in self.__dict__

    def _parsed(self) -> FunctionTree:
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
        """16 hexadecimal digits, see :mod:`.fingerprint`."""
        return digest(self.node)


@lru_cache(maxsize=256)
def locate(module: str, text: str, qualname: str) -> Definition | None:
    """Find ``Class.method`` or ``function`` in the source ``text`` of ``module``.

    A function may also stand in a ``try`` at the top level of the module: then it is defined only
    if the imports above it succeed. Returns ``None`` when there is no such definition. Raises
    ``TargetError`` when there is more than one, or when it is not a function, and ``SyntaxError``
    when the text does not parse.
    """
    outline = outline_of(text)
    if outline is None or qualname not in outline.places:
        return parsed(module, text, qualname)
    place = outline.places[qualname]
    if place is None:
        return None
    segment = _segment(text, place.first, place.last)
    flags, names = outline.future_flags, outline.imported_names
    found = Definition(module, qualname, segment, place.first, flags, names)
    found.__dict__["digest"] = place.digest
    return found


def parsed(module: str, text: str, qualname: str) -> Definition | None:
    """As :func:`locate`, but always found in the syntax tree of ``text``, never in an outline."""
    tree, flags, names = _parse_module(text)
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
    tried = [] if scopes else [n for t in body if isinstance(t, ast.Try) for n in t.body]
    for statements in (body, tried):
        found = [
            n for n in statements if isinstance(n, (*FunctionNode, ast.ClassDef)) and n.name == name
        ]
        if found:
            break
    else:
        return None
    if len(found) > 1:
        raise TargetError(f"{module}:{qualname} is defined {len(found)} times; expected once")
    node = found[0]
    if isinstance(node, ast.ClassDef):
        raise TargetError(f"{module}:{qualname} is a class; expected a function")
    first = first_line(node, _rows_of(text))
    segment = _segment(text, first, last_line(node))
    return Definition(module, qualname, segment, first, flags, names, node)


def _segment(text: str, first: int, last: int) -> str:
    return "\n".join(_rows_of(text)[first - 1 : last]) + "\n"


def first_line(node: ast.stmt, lines: Sequence[str] = (), start: int = 1) -> int:
    """The number of the statement's first line, decorators included.

    The tree has no place for the ``@``, which may stand above its decorator, as in ``@(``. With the
    ``lines`` of the text, of which the first is number ``start``, it is found.
    """
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    while lines and decorators and not lines[first - start].lstrip().startswith("@"):
        first -= 1
    return first


def last_line(node: ast.stmt) -> int:
    """The number of the statement's last line."""
    assert node.end_lineno is not None
    return node.end_lineno


def compiled_with(text: str) -> tuple[int, tuple[str, ...]]:
    """The compiler's flags and the imported names of the definitions in a module's source."""
    return _parse_module(text)[1:]


def body_of(text: str) -> list[ast.stmt]:
    """The statements of a module's source. Not to be changed."""
    return _parse_module(text)[0].body


def bound_names(body: Iterable[ast.AST]) -> Iterator[str]:
    """The names that statements bind in their own scope."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        else:
            yield from bound_names(ast.iter_child_nodes(node))


@lru_cache(maxsize=512)
def statements_of(code: str) -> list[ast.stmt]:
    """The syntax trees of an edit's code. Not to be changed."""
    return ast.parse(code).body


def forget() -> None:
    """Empty the caches, which are there because the next patch may look at the same source."""
    _parse_module.cache_clear()
    _rows_of.cache_clear()
    outline_of.cache_clear()
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
