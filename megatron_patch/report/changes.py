"""What a patch changes of each function, as lines for a person to read."""

from __future__ import annotations

import difflib
import io
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..definitions import Definition, locate
from ..edits import Add, Requires, Target
from ..errors import TargetError
from ..source_edits import SourcePatch
from ..source_tree import SourceTree

#: Lines of the function that are shown above and below what is changed.
CONTEXT = 3


class Line(NamedTuple):
    """One line of a difference: ``sign`` is ``+``, ``-`` or a blank; ``@``: lines are left out."""

    sign: str
    text: str


@dataclass(frozen=True)
class Change:
    """What one patch changes of one function, or the function that it adds."""

    name: str  #: dotted, in its module
    file: str  #: from the root of the tree, with ``/``
    line: int  #: of the definition in the file as it is on disk, from 1; where it is new, 0
    lines: tuple[Line, ...]

    @property
    def place(self) -> str:
        """File and line of what is changed; of what is new, that it is."""
        return f"{self.file}:{self.line}" if self.line else f"{self.file} (new)"


def changes(tree: SourceTree, made: SourcePatch) -> tuple[Change, ...]:
    """The changes that a patch makes, on top of those of the patches before it."""
    texts = {edit.path: (_text(edit.before), _text(edit.after)) for edit in made.files}
    found: dict[tuple[str, str], Change] = {}
    for edit in made.variant.edits:
        target = Target.parse(edit.target)
        path = tree.path(target.module)
        assert path is not None
        file = path.relative_to(tree.root).as_posix()
        if isinstance(edit, Requires) or file not in texts or (file, target.qualname) in found:
            continue
        old, new = (_segment(target, text) for text in texts[file])
        if isinstance(edit, Add):
            old, new = [], edit.source.strip("\n").splitlines()
        if old != new:
            change = Change(target.qualname, file, _line(target, tree), tuple(_lines(old, new)))
            found[file, target.qualname] = change
    return tuple(found.values())


def _definition(target: Target, text: str | None) -> Definition | None:
    if text is None:
        return None
    try:
        return locate(target.module, text, target.qualname)
    except TargetError:  # a class, which only a helper may be
        return None


def _segment(target: Target, text: str) -> list[str]:
    found = _definition(target, text)
    return [] if found is None else found.segment.rstrip("\n").split("\n")


def _line(target: Target, tree: SourceTree) -> int:
    found = _definition(target, tree.read(target.module))
    return 0 if found is None else found.first_line


def _text(content: bytes) -> str:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return content.decode(encoding)


def _lines(old: Sequence[str], new: Sequence[str]) -> Iterator[Line]:
    """The lines that differ, with some around them, and those that name the function."""
    groups = difflib.SequenceMatcher(None, old, new, False).get_grouped_opcodes(CONTEXT)
    end = 0
    for group in groups:
        if group[0][1] > end:
            yield Line("@", f"{group[0][1] - end} lines")
        for tag, first, last, start, stop in group:
            if tag == "equal":
                yield from (Line(" ", text) for text in old[first:last])
            else:
                yield from (Line("-", text) for text in old[first:last])
                yield from (Line("+", text) for text in new[start:stop])
        end = group[-1][2]
    if end < len(old):
        yield Line("@", f"{len(old) - end} lines")
