"""New text for a definition, with the proof by its tree that it is what it is meant to be."""

from __future__ import annotations

import ast
from dataclasses import replace as dataclass_replace

from .definitions import Definition, lines_of
from .errors import RewriteError
from .fingerprint import equal


def failure(definition: Definition, why: str) -> RewriteError:
    """The error that an edit of the definition cannot be made."""
    return RewriteError(f"{definition.module}:{definition.qualname}: {why}")


def indented(text: str, prefix: str) -> str:
    """``text`` with ``prefix`` before each line that is not blank."""
    return "".join(prefix + line if line.strip() else line for line in lines_of(text))


def margin_of(line: str) -> str:
    """The blanks that a line begins with."""
    return line[: len(line) - len(line.lstrip())]


def checked(definition: Definition, segment: str, expected: ast.AST) -> Definition:
    """The definition with a new segment, if that parses to the expected tree."""
    result = dataclass_replace(definition, segment=segment, found=None)
    try:
        same = equal(result.node, expected)
    except SyntaxError as error:
        raise failure(definition, f"the edited source does not parse: {error}") from error
    if not same:
        raise failure(definition, "the edited text is not the intended edit of the syntax tree")
    return result


def proved(definition: Definition, segment: str, expected: ast.AST) -> Definition | None:
    """As :func:`checked`, but ``None`` if it does not."""
    try:
        return checked(definition, segment, expected)
    except RewriteError:
        return None
