"""Source text with one function in it: where its nodes and tokens are, as offsets in the text."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from megatron_patch.definitions import module_tree

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


class Edit(NamedTuple):
    """``text`` replaces the text from ``start`` to ``end``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Token:
    """A token, and how many brackets are open after it; those of f-strings are left out."""

    kind: int
    string: str
    start: int
    end: int
    depth: int


class Code:
    """A module's text, and the function in it that is to be edited."""

    def __init__(self, text: str, qualname: str) -> None:
        self.text = text
        self.qualname = qualname
        self.tree = module_tree(text)  # not to be changed
        self._lines = text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)
        *scopes, name = qualname.split(".")
        self.scope: ast.Module | ast.ClassDef = self.tree
        self.top: ast.stmt | None = None
        for scope in scopes:
            (self.scope,) = (
                n for n in self.scope.body if isinstance(n, ast.ClassDef) and n.name == scope
            )
            self.top = self.top or self.scope
        ((self.node, self.block),) = (
            (node, block)
            for block in _blocks(self.scope)
            for node in block
            if isinstance(node, FUNCTIONS) and node.name == name
        )
        self.top = self.top or self.node

    def edited(self, edit: Edit) -> str:
        """The whole text after one edit."""
        return self.text[: edit.start] + edit.text + self.text[edit.end :]

    def offset(self, line: int, column: int) -> int:
        """The offset of a position of a syntax tree: line from 1, column in bytes of UTF-8."""
        text = self._lines[line - 1]
        if not text.isascii():
            column = len(text.encode()[:column].decode())
        return self._starts[line - 1] + column

    def start(self, node: ast.AST) -> int:
        return self.offset(node.lineno, node.col_offset)  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        return self.offset(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def replaced(self, node: ast.AST, text: str) -> Edit:
        return Edit(self.start(node), self.end(node), text)

    def lines(self, node: ast.stmt) -> tuple[int, int] | None:
        """From the start of the statement's first line, decorators included, to after its last.

        None if other code is on these lines, or if the statement is an ``elif``.
        """
        first = self.first_line(node)
        start, end = self._starts[first - 1], self._starts[node.end_lineno]  # type: ignore[index]
        before = self.text[start : self.start(node)] if first == node.lineno else ""
        after = self.text[self.end(node) : end].strip()
        is_elif = self.text.startswith("elif", self.start(node))
        if before.strip() or is_elif or (after and not after.startswith("#")):
            return None
        return start, end

    def first_line(self, node: ast.stmt) -> int:
        """The line with the ``@`` of the first decorator, which may be above it, or its own."""
        decorators = getattr(node, "decorator_list", None)
        if not decorators:
            return node.lineno
        return self.text.count("\n", 0, self.text.rindex("@", 0, self.start(decorators[0]))) + 1

    def margin(self, node: ast.stmt) -> str:
        """The white space in front of a statement."""
        line = self._lines[node.lineno - 1]
        return line[: len(line) - len(line.lstrip())]

    def nodes(self) -> list[ast.AST]:
        """The function's nodes. Not those in f-strings, whose positions were wrong before Python
        3.12, nor those in patterns, where other syntax is allowed."""
        return self._nodes

    @cached_property
    def _nodes(self) -> list[ast.AST]:
        found: list[ast.AST] = []
        stack: list[ast.AST] = [self.node]
        while stack:
            node = stack.pop()
            found.append(node)
            if not isinstance(node, (ast.JoinedStr, ast.pattern)):
                stack.extend(reversed(list(ast.iter_child_nodes(node))))
        return found

    def blocks(self) -> list[tuple[ast.AST, list[ast.stmt]]]:
        """Each list of statements, docstrings left out, and the node that has it."""
        return self._blocks

    @cached_property
    def _blocks(self) -> list[tuple[ast.AST, list[ast.stmt]]]:
        return list(self._find_blocks())

    def _find_blocks(self) -> Iterator[tuple[ast.AST, list[ast.stmt]]]:
        for node in self._nodes:
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list):
                    yield node, block[has_docstring(node) if name == "body" else 0 :]

    def docstrings(self) -> set[ast.AST]:
        """The string constants that are docstrings of functions."""
        return {n.body[0].value for n in self.nodes() if has_docstring(n)}  # type: ignore[attr-defined]

    @cached_property
    def tokens(self) -> list[Token]:
        """The tokens of the function, decorators included."""
        first = self.first_line(self.node)
        text = "\n".join(self._lines[first - 1 : self.node.end_lineno]) + "\n"
        tokens: list[Token] = []
        depth = strings = 0
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            name = tokenize.tok_name[token.type]
            strings += (name == "FSTRING_START") - (name == "FSTRING_END")
            if strings or name == "FSTRING_END":
                continue
            if name == "OP":
                depth += BRACKETS.get(token.string, 0)
            start, end = (
                self._starts[first - 2 + row] + column for row, column in (token.start, token.end)
            )
            tokens.append(Token(token.type, token.string, start, end, depth))
        return tokens


def _blocks(scope: ast.Module | ast.ClassDef) -> list[list[ast.stmt]]:
    """The lists of statements of a scope: its own, and those of what a module tries."""
    tried = [node.body for node in scope.body if isinstance(node, ast.Try)]
    return [scope.body, *(tried if isinstance(scope, ast.Module) else ())]


def has_docstring(node: ast.AST) -> bool:
    """Whether the node is a function that has one."""
    return isinstance(node, FUNCTIONS) and ast.get_docstring(node, clean=False) is not None


def meaning(text: str, qualname: str) -> tuple[tuple[object, ...], ...]:
    """What the definitions of a function say, without docstrings: equal for equal trees.

    Written independently of ``megatron_patch.fingerprint``, which it checks.
    """
    *scopes, name = qualname.split(".")
    tree = module_tree(text)  # not to be changed
    bodies = [tree.body] if scopes else _blocks(tree)
    for scope in scopes:
        bodies = [
            node.body
            for body in bodies
            for node in body
            if isinstance(node, ast.ClassDef) and node.name == scope
        ]
    found = [n for body in bodies for n in body if isinstance(n, FUNCTIONS) and n.name == name]
    return tuple(map(_said, found))


def _said(root: ast.AST) -> tuple[object, ...]:
    """All that a tree has, in one order: kinds of nodes, lengths of lists, and constants.

    In a fraction of the time of ``ast.dump``.
    """
    found: list[object] = []
    rest: list[object] = [root]
    while rest:
        item = rest.pop()
        kind = type(item)
        if kind is list:
            found.append(len(item))  # type: ignore[arg-type]
            rest += item  # type: ignore[operator]
        elif not isinstance(item, ast.AST):
            found.append(repr(item))  # 1, 1.0, True and "1" differ by it, and 0.0 and -0.0
        else:
            found.append(kind)
            body = None
            if kind in FUNCTIONS and has_docstring(item):
                body = item.body[1:]  # type: ignore[attr-defined]
            for field in kind._fields:  # type: ignore[attr-defined]
                if field == "body" and body is not None:
                    rest.append(body)
                elif field != "kind":  # of a constant: whether there is a u before a string
                    rest.append(getattr(item, field, None))
    return tuple(found)


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Functions of the module and its classes, with their dotted names."""
    stack: list[tuple[str, ast.stmt]] = [("", node) for node in reversed(tree.body)]
    while stack:
        prefix, node = stack.pop()
        if isinstance(node, FUNCTIONS):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            stack.extend((f"{prefix}{node.name}.", child) for child in reversed(node.body))
        elif isinstance(node, ast.Try) and not prefix:
            stack.extend(("", child) for child in reversed(node.body))


def reduced(text: str, keep: set[str]) -> str:
    """The text without the functions that are not in ``keep``, and without empty classes.

    Judging a module of thousands of lines takes long; what a digest says of a definition does not
    depend on the others.
    """
    tree = module_tree(text)
    lines = text.split("\n")
    dropped = [node for name, node in functions(tree) if name not in keep]
    for node in tree.body:
        is_needed = any(f"{name}.".startswith(f"{getattr(node, 'name', '')}.") for name in keep)
        if isinstance(node, ast.ClassDef) and not is_needed:
            dropped.append(node)
    for node in dropped:
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])  # type: ignore[attr-defined]
        for row in range(first - 1, node.end_lineno):  # type: ignore[arg-type]
            lines[row] = ""
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines))
