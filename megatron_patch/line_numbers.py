"""Line numbers of edited code: its file's own, wherever an edit left a line alone.

A code object has one file name. Ours has that of Megatron's file, so that a breakpoint in it is
hit, its lines count in a coverage report, and a traceback shows them. The lines that an edit puts
there are in no file: they get numbers behind the file's last line, where ``linecache``, which
tracebacks read, shows each as a comment that begins with the ids of its patches.
``inspect.getsource()``, which reads from a first line on, shows the file's text.
"""

from __future__ import annotations

import ast
import linecache
from difflib import SequenceMatcher
from typing import Any

from .definitions import Definition, lines_of
from .fingerprint import below


class File:
    """The lines of one file, and those of ours behind them."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.lines = lines_of(text if text.endswith("\n") else text + "\n")
        self._numbers: dict[str, int] = {}

    def number(self, line: str) -> int:
        """The number, from 1, of a line of ours; the same one for the same line."""
        if line not in self._numbers:
            self.lines.append(line + "\n")
            self._numbers[line] = len(self.lines)
        return self._numbers[line]

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


def renumber(
    tree: ast.AST, original: Definition, edited: Definition, file: File, label: str
) -> None:
    """Give the nodes of ``tree``, parsed from ``edited``, the numbers of the lines of ``file``.

    ``original`` is the definition in the file; ``label`` is put before the lines that it lacks.
    """
    first = original.first_line
    before, after = lines_of(original.segment), lines_of(edited.segment)
    rows = _rows_left_alone(list(map(str.strip, before)), list(map(str.strip, after)))
    exact = {row for row, old in rows.items() if before[old] == after[row]}
    numbers = [
        first + rows[row] if row in rows else file.number(f"# {label}: {line.strip()}")
        for row, line in enumerate(after)
    ]
    # The lines above the first that is another one have their numbers.
    same = (row in exact and number == first + row for row, number in enumerate(numbers))
    head = next((row for row, is_same in enumerate(same) if not is_same), len(numbers))
    todo: list[Any] = [tree]
    while todo:
        node = todo.pop()
        if hasattr(node, "lineno"):
            row, end_row = node.lineno - first, (node.end_lineno or node.lineno) - first
            if end_row < head:
                continue  # and all that is below it
            node.lineno, node.end_lineno = numbers[row], numbers[end_row]
            if not {row, end_row} <= exact or node.lineno > node.end_lineno:
                # One line, and no columns of it: they are those of another text.
                node.end_lineno = node.lineno
                node.col_offset = node.end_col_offset = -1
        todo += below(node)
    file.show()


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
