"""Source text with one function in it: where its nodes and tokens are, as offsets in the text."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


@dataclass(frozen=True)
class Edit:
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
        self.tree = ast.parse(text)
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
        return self._starts[line - 1] + len(text.encode()[:column].decode())

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
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        start, end = self._starts[first - 1], self._starts[node.end_lineno]  # type: ignore[index]
        before = self.text[start : self.start(node)] if first == node.lineno else ""
        after = self.text[self.end(node) : end].strip()
        is_elif = self.text.startswith("elif", self.start(node))
        if before.strip() or is_elif or (after and not after.startswith("#")):
            return None
        return start, end

    def margin(self, node: ast.stmt) -> str:
        """The white space in front of a statement."""
        line = self._lines[node.lineno - 1]
        return line[: len(line) - len(line.lstrip())]

    def nodes(self, root: ast.AST | None = None) -> Iterator[ast.AST]:
        """The function's nodes. Not those in f-strings, whose positions were wrong before Python
        3.12, nor those in patterns, where other syntax is allowed."""
        stack: list[ast.AST] = [root or self.node]
        while stack:
            node = stack.pop()
            yield node
            if not isinstance(node, (ast.JoinedStr, ast.pattern)):
                stack.extend(reversed(list(ast.iter_child_nodes(node))))

    def blocks(self) -> Iterator[tuple[ast.AST, list[ast.stmt]]]:
        """Each list of statements, docstrings left out, and the node that has it."""
        for node in self.nodes():
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
        first = min([self.node.lineno, *(d.lineno for d in self.node.decorator_list)])
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


@lru_cache(maxsize=64)  # each mutant is compared with one original
def meaning(text: str, qualname: str) -> tuple[str, ...]:
    """What the definitions of a function say, without docstrings: equal for equal trees.

    Written independently of ``megatron_patch.fingerprint``, which it checks.
    """
    tree = ast.parse(text)
    *scopes, name = qualname.split(".")
    bodies = [tree.body] if scopes else _blocks(tree)
    for scope in scopes:
        bodies = [
            node.body
            for body in bodies
            for node in body
            if isinstance(node, ast.ClassDef) and node.name == scope
        ]
    found = [n for body in bodies for n in body if isinstance(n, FUNCTIONS) and n.name == name]
    for root in found:
        for node in ast.walk(root):
            if has_docstring(node):
                del node.body[0]  # type: ignore[attr-defined]
            if isinstance(node, ast.Constant):
                node.kind = None
    return tuple(ast.dump(root) for root in found)


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
    tree = ast.parse(text)
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
