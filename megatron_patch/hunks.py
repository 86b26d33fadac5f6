"""Read the hunks of a record: the file of differences that stands beside it.

The file reads as a unified diff, but for its headers: a hunk says which function it is of instead
of line numbers, and, where not all variants of the record have it, which variants do::

    --- a/megatron/core/inference/sampling.py
    +++ b/megatron/core/inference/sampling.py
    @@ Sampler.sample @@ 0.17, 0.18
     tokens = []
    -rows = torch.tensor(rows, device=$device)
    +rows = torch.tensor(rows).to($device, non_blocking=True)

The lines without ``+`` are searched for by syntax tree, and those without ``-`` are put in their
place. Two sides that are one expression each are an expression. ``$name`` is any expression, the
same wherever it stands in the hunk, on both sides. A hunk of nothing but ``+`` defines what its
header names. Lines above the first ``---`` and lines that begin with ``#`` are prose.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from .edits import METAVARIABLE, Add, Substitute
from .sources import read_data


class Hunk(NamedTuple):
    """One hunk, and the names of the variants that have it; none for all of them."""

    edit: Substitute | Add
    variants: tuple[str, ...]


class Hunks(NamedTuple):
    """The hunks of one record, in the order of their file."""

    file: str
    hunks: tuple[Hunk, ...]

    def of(self, variant: str) -> tuple[Substitute | Add, ...]:
        """Those of one variant. Raises ``ValueError`` when it has none."""
        found = tuple(h.edit for h in self.hunks if not h.variants or variant in h.variants)
        if not found:
            raise ValueError(f"{self.file}: no hunk is of variant {variant!r}")
        return found


def beside(record: str) -> Hunks:
    """The hunks of the record whose ``__file__`` is ``record``.

    Raises ``ValueError`` with file and line when they cannot be read.
    """
    file = f"{os.path.splitext(record)[0]}.diff"
    return Hunks(file, tuple(_hunks(file, read_data(file).splitlines())))


def _hunks(file: str, lines: list[str]) -> Iterator[Hunk]:
    # This runs for each record whenever the package is imported: a line is looked at once, and
    # no regular expression is compiled.
    module = ""
    header: tuple[str, str, tuple[str, ...]] | None = None
    find: list[str] = []
    put: list[str] = []
    for number, line in enumerate((*lines, "--- end"), 1):
        mark = line[:1]
        if mark and mark in "-+@" and line.startswith(("--- ", "+++ ", "@@")):
            if header is not None:
                yield _hunk(*header, _side(find), _side(put))
                header, find, put = None, [], []
            if mark == "+":
                module = _module(line[4:])
            elif mark == "@":
                name, end, names = line[3:].partition(" @@")
                is_apart = not names or (names.startswith(" ") and len(names) > 1)
                is_header = line.startswith("@@ ") and end and is_apart
                if not (is_header and module and all(map(str.isidentifier, name.split(".")))):
                    raise ValueError(
                        f"{file}:{number}: {line!r}: expected `@@ Class.method @@`, below "
                        "`+++ b/path`"
                    )
                variants = tuple(variant.strip() for variant in names.split(",") if variant.strip())
                header = (f"{file}:{number}", f"{module}:{name}", variants)
        elif header is not None and mark != "#":
            if mark not in ("", " ", "+", "-"):
                raise ValueError(
                    f"{file}:{number}: {line!r}: expected a line that begins with ' ', '+' or '-'"
                )
            if mark != "+":
                find.append(line[1:])
            if mark != "-":
                put.append(line[1:])


def _module(path: str) -> str:
    return path.strip().removeprefix("b/").removesuffix(".py").replace("/", ".")


def _hunk(where: str, target: str, variants: tuple[str, ...], find: str, put: str) -> Hunk:
    if not find.strip():
        if not put.strip():
            raise ValueError(f"{where}: the hunk is empty")
        if _names(put):
            raise ValueError(f"{where}: what is added is code as it is, without `$`")
        return Hunk(Add(target, put), variants)
    if find == put:
        raise ValueError(f"{where}: the hunk changes nothing; a condition is a `Requires`")
    missing = {name[len(METAVARIABLE) :] for name in _names(find) ^ _names(put) if put.strip()}
    if missing:
        raise ValueError(f"{where}: ${min(missing)} is on one side of the hunk only")
    return Hunk(Substitute(target, find, put), variants)


def _names(side: str) -> set[str]:
    return set(re.findall(rf"\b{METAVARIABLE}\w+", side)) if METAVARIABLE in side else set()


def _side(lines: list[str]) -> str:
    first, *others = "\n".join(lines).split("$")
    named = (f"{METAVARIABLE if 'a' <= text[:1] <= 'z' else '$'}{text}" for text in others)
    return "".join((first, *named)).strip("\n") + "\n"
