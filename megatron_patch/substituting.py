"""Make hunks in a definition: find their code by the syntax tree, and exchange its text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from .definitions import Definition, lines_of, statements_of
from .edits import METAVARIABLE, Substitute
from .fingerprint import FunctionTree, walk
from .matching import Bindings, Place, exchanged, landmark, places
from .segments import checked, failure, indented, margin_of, proved


@lru_cache(maxsize=512)  # asked for each source that is known, and told again
def occurrences(definition: Definition, edit: Substitute) -> int:
    """How often the code that ``edit`` looks for is in the definition."""
    return len(_places(definition, definition.node, edit))


def forget() -> None:
    """Empty the cache, which is there because the next patch may look at the same source."""
    occurrences.cache_clear()


class _TextChange(NamedTuple):
    """Other text for a part of a segment, from ``start`` to ``end``."""

    start: int
    end: int
    text: str

    def made(self, segment: str) -> str:
        return segment[: self.start] + self.text + segment[self.end :]


def substituted(definition: Definition, edits: Sequence[Substitute]) -> Definition:
    """The definition after hunks in this order. Raises ``RewriteError`` when one does not fit."""
    together = _together(definition, edits) if len(edits) > 1 else None
    if together is not None:
        return together
    for edit in edits:
        definition = _alone(definition, edit)
    return definition


def _together(definition: Definition, edits: Sequence[Substitute]) -> Definition | None:
    """The definition after several edits, with one proof for all.

    ``None`` where that is not possible: where one edits code that another has put there or has
    touched, and where only making them one by one tells which does not fit, or which needs
    parentheses.
    """
    tree = definition.node
    untouched = set(map(id, walk(tree)))
    changes: list[_TextChange] = []
    for edit in edits:
        found = _places(definition, tree, edit)
        if len(found) != 1 or not untouched.issuperset(map(id, found[0].nodes)):
            return None
        changes.append(_text_change(definition, edit, found[0]))
        tree = exchanged(tree, found[0], statements_of(edit.put))
    changes.sort(reverse=True)
    if any(sooner.end > later.start for later, sooner in pairwise(changes)):
        return None
    segment = definition.segment
    for change in changes:
        segment = change.made(segment)
    return proved(definition, segment, tree)


def _alone(definition: Definition, edit: Substitute) -> Definition:
    tree = definition.node
    place = only_place(definition, tree, edit)
    expected = exchanged(tree, place, statements_of(edit.put))
    change = _text_change(definition, edit, place)
    if place.body is None:
        result = proved(definition, change.made(definition.segment), expected)
        if result is not None:
            return result
        # Operators of the surroundings may bind tighter than those of the new expression.
        change = change._replace(text=f"({change.text})")
    return checked(definition, change.made(definition.segment), expected)


def only_place(definition: Definition, tree: FunctionTree, edit: Substitute) -> Place:
    """Where the edit is made in ``tree``, that of the definition with edits that were made before.

    Raises ``RewriteError`` when it cannot be.
    """
    found = _places(definition, tree, edit)
    if len(found) != 1:
        times = f"found {len(found)} times" if found else "not found"
        raise failure(definition, f"expected `{as_written(edit.find)}` exactly once; {times}")
    (place,) = found
    if place.body is not None and len(place.body) == len(place.nodes) and not edit.put.strip():
        raise failure(
            definition, f"`{as_written(edit.find)}` is all of its block; put `pass` in its place"
        )
    return place


def _places(definition: Definition, tree: FunctionTree, edit: Substitute) -> list[Place]:
    return places(tree, edit.find, edit.put, rows_with(definition, landmark(edit.find)))


def rows_with(definition: Definition, name: str | None) -> list[int] | None:
    """The numbers of the lines of the definition that have the name, ``None`` if that is not known.

    In text that is not ASCII a name can be spelled otherwise.
    """
    text = definition.segment
    if name is None or not text.isascii():
        return None
    found, start, row = list[int](), 0, definition.first_line
    while (at := text.find(name, start)) >= 0:
        row += text.count("\n", start, at)
        found.append(row)
        start = at + len(name)
    return found


def _text_change(definition: Definition, edit: Substitute, place: Place) -> _TextChange:
    """What the edit changes in the text. Raises ``RewriteError`` when that cannot be."""
    lines = lines_of(definition.segment)
    start, end = _span(definition, lines, place.nodes[0], place.nodes[-1])
    before, after = definition.segment[:start], definition.segment[end:]
    put = _filled(definition, lines, edit.put.strip("\n"), place.bindings)
    margin = before[before.rfind("\n") + 1 :]
    if place.body is None:
        return _TextChange(start, end, _hanging(put.strip(), margin_of(margin + ".")))
    if margin.strip():
        raise failure(definition, f"`{as_written(edit.find)}` shares its line with other code")
    if put.strip():
        return _TextChange(start, end, indented(put, margin).removeprefix(margin))
    line_ends = len(after) - len(after.lstrip("\n"))
    return _TextChange(start - len(margin), end + line_ends, "")


def as_written(code: str) -> str:
    """Code of a hunk as its file has it."""
    return code.strip().replace(METAVARIABLE, "$")


def _filled(definition: Definition, lines: list[str], put: str, bindings: Bindings) -> str:
    """``put`` with what the source has in the places of the metavariables, as it is written."""
    # The longest first: one may begin as another does.
    for name, node in sorted(bindings.items(), key=lambda item: -len(item[0])):
        start, end = _span(definition, lines, node, node)
        margin = margin_of(lines[node.lineno - definition.first_line])
        first, *others = lines_of(definition.segment[start:end])
        # All lines of the hunk get the margin of the place where it is put.
        text = first + "".join(line.removeprefix(margin) for line in others)
        put = "".join(
            line.replace(name, _hanging(text, margin_of(line))) if name in line else line
            for line in lines_of(put)
        )
    return put


def _hanging(text: str, margin: str) -> str:
    """``text`` with ``margin`` before all lines but the first."""
    first, *others = lines_of(text)
    return first + indented("".join(others), margin)


def _span(definition: Definition, lines: list[str], first: Any, last: Any) -> tuple[int, int]:
    """Offsets in the segment's characters of two nodes' start and end."""

    def offset(line: int, column: int) -> int:
        row = line - definition.first_line
        return sum(map(len, lines[:row])) + len(lines[row].encode()[:column].decode())

    return offset(first.lineno, first.col_offset), offset(last.end_lineno, last.end_col_offset)
