"""Line numbers of edited code: its file's own, wherever an edit left a line alone.

A code object has one file name. Ours has that of Megatron's file, so that a breakpoint in it is
hit, its lines count in a coverage report, and a traceback shows them. The lines that an edit puts
there are in no file: they get numbers behind the file's last line, where ``linecache``, which
tracebacks read, shows each as a comment that begins with the id of its patch.
``inspect.getsource()``, which reads from a first line on, shows the file's text.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from types import CodeType
from typing import Any

from .definitions import lines_of
from .edits import METAVARIABLE
from .fingerprint import walk
from .segments import margin_of


class File:
    """The lines of one file, and those of ours behind them; and the code that has their numbers."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.lines = lines_of(text if text.endswith("\n") else text + "\n")
        self._size = len(self.lines)
        self._numbers: dict[str, int] = {}
        self._ours: list[str] = []
        #: What was compiled for a function and the edits of it, to put the same patches in again.
        self.codes: dict[tuple[str, object], CodeType] = {}

    def has(self, number: int) -> bool:
        """Whether the line of that number, from 1, is in the file itself."""
        return number <= self._size

    def line(self, number: int) -> str:
        """The line of that number, from 1, without a label."""
        return self.lines[number - 1] if self.has(number) else self._ours[number - self._size - 1]

    def number(self, line: str, label: str) -> int:
        """The number, from 1, of a line of ours; the same one for the same line and label."""
        shown = f"# {label}: {line.strip()}\n"
        if shown not in self._numbers:
            self.lines.append(shown)
            self._ours.append(line)
            self._numbers[shown] = len(self.lines)
        return self._numbers[shown]

    def show(self) -> None:
        """Have ``linecache`` show our lines too, for as long as nobody clears it."""
        size = sum(map(len, self.lines))
        linecache.cache[self.name] = (size, None, self.lines, self.name)


_files: dict[str, File] = {}


def file_of(name: str, text: str) -> File:
    """The file called ``name``, which has this ``text`` now."""
    if name not in _files or _files[name].text != text:
        _files[name] = File(name, text)
    return _files[name]


def lines_around(nodes: Sequence[ast.AST], file: File) -> list[int]:
    """The numbers of the lines from the first to the last that have code of the nodes.

    Lines of the file come first, then those of ours.
    """
    found = {n for node in _placed(nodes) for n in (node.lineno, node.end_lineno)}
    parts = [n for n in found if file.has(n)], [n for n in found if not file.has(n)]
    return [n for part in parts if part for n in range(min(part), max(part) + 1)]


def _placed(nodes: Sequence[ast.AST]) -> Iterator[Any]:
    """The nodes, and those below them, that have a place in the text."""
    return (child for node in nodes for child in walk(node) if hasattr(child, "lineno"))


def renumber(
    nodes: Sequence[ast.AST], code: str, text: str, replaced: Sequence[int], file: File, label: str
) -> None:
    """Give nodes parsed from ``code`` the numbers of the lines of ``file`` that they are in.

    They take the place of what was in the lines ``replaced``. ``text`` is ``code`` with what its
    metavariables stand for; ``label`` is put before the lines that the file lacks.
    """
    new, old = lines_of(text), [file.line(number) for number in replaced]
    rows = _rows_left_alone(list(map(str.strip, old)), list(map(str.strip, new)))
    numbers: list[int] = []
    shifts: dict[int, int] = {}  # how far to the right the file has the rows that it has
    for row, (line, unfilled) in enumerate(zip(new, lines_of(code), strict=True)):
        if row not in rows:
            numbers.append(file.number(line, label) if line.strip() else 0)
            continue
        numbers.append(replaced[rows[row]])
        if file.has(numbers[row]) and METAVARIABLE not in unfilled:
            there = old[rows[row]]
            shifts[row] = len(margin_of(there)) - len(margin_of(line))
    for node in _placed(nodes):
        _move(node, numbers, shifts)


def _move(node: Any, numbers: Sequence[int], shifts: dict[int, int]) -> None:
    row, end_row = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    node.lineno, node.end_lineno = numbers[row], numbers[end_row]
    if {row, end_row} <= shifts.keys() and node.lineno <= node.end_lineno:
        node.col_offset += shifts[row]
        node.end_col_offset += shifts[end_row]
    else:
        # One line, and no columns of it: they are those of another text.
        node.end_lineno = node.lineno
        node.col_offset = node.end_col_offset = -1


def _rows_left_alone(before: list[str], after: list[str]) -> dict[int, int]:
    """The rows of ``after`` that an edit left alone, and which of ``before`` they are."""
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    rows = {row: row for row in range(head)}
    rows.update({len(after) - 1 - row: len(before) - 1 - row for row in range(tail)})
    matcher = SequenceMatcher(
        None, before[head : len(before) - tail], after[head : len(after) - tail], autojunk=False
    )
    for old, new, size in matcher.get_matching_blocks():
        rows.update({head + new + row: head + old + row for row in range(size)})
    return rows
