"""The series as files that ``git am`` takes: one for each backport, always the same bytes."""

from __future__ import annotations

import difflib
import hashlib
import re
import textwrap
from collections.abc import Sequence
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path

from .definitions import no_search_for_garbage
from .errors import TreeError
from .source_edits import FileEdit, SourcePatch

AUTHOR = "megatron_patch <megatron-patch@noreply.invalid>"
UPSTREAM = "https://github.com/NVIDIA/Megatron-LM"
SERIES_FILE = "series"
NAME = re.compile(r"\d{4}-[a-z0-9][a-z0-9-]*\.patch")


def file_name(made: SourcePatch) -> str:
    """``0001-input-position-view-cache.patch``."""
    return f"{made.number:04}-{made.patch.id}.patch"


@no_search_for_garbage()
def files(patches: Sequence[SourcePatch]) -> dict[str, bytes]:
    """The content of a directory of patches, by file name; ``series`` lists them in order."""
    content = {file_name(made): patch_text(made) for made in patches}
    series = "".join(f"{name}\n" for name in content)
    return {SERIES_FILE: series.encode(), **content}


def write(patches: Sequence[SourcePatch], output: Path) -> list[Path]:
    """Write the files to the directory, and remove the others that its ``series`` lists.

    Raises ``TreeError``, with nothing written, when a file of such a name was not written by an
    export, which its first bytes tell.
    """
    new = files(patches)
    output.mkdir(parents=True, exist_ok=True)
    earlier = _listed(output / SERIES_FILE)
    for name in {*new, *earlier} - {SERIES_FILE}:
        path = output / name
        if path.is_symlink() or (path.exists() and not _is_ours(path)):
            raise TreeError(_in_the_way(path))
    for name in reversed(new):  # the list last: all that it names is there by then
        (output / name).write_bytes(new[name])
    for name in earlier:
        if name not in new:
            (output / name).unlink(missing_ok=True)
    return [output / name for name in new]


def _listed(series: Path) -> list[str]:
    """The files that an earlier export has written. Raises ``TreeError`` if it is no such list."""
    if not (series.exists() or series.is_symlink()):
        return []
    if series.is_file() and not series.is_symlink():
        found = list(filter(None, series.read_bytes().decode("ascii", "replace").split("\n")))
        if all(map(NAME.fullmatch, found)):
            return found
    raise TreeError(_in_the_way(series))


def _is_ours(path: Path) -> bool:
    with open(path, "rb") as file:
        lines = file.read(200).split(b"\n")
    return len(lines) > 1 and lines[1] == f"From: {AUTHOR}".encode()


def _in_the_way(path: Path) -> str:
    return (
        f"{path} was not written by `megatron-patch export`, and is in the way. Nothing was "
        "written: name another directory, or remove the file"
    )


def patch_text(made: SourcePatch) -> bytes:
    """One patch: a mail with DEP-3 fields, and the differences in git's format."""
    patch = made.patch
    description = textwrap.fill(
        f"Description: {patch.summary}. Without it: {patch.symptom}.".replace("..", "."),
        width=72,
        subsequent_indent=" ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    if patch.upstream_pr is None:
        origin = "Origin: vendor\nForwarded: no"
    else:
        origin = f"""\
Origin: backport, {UPSTREAM}/pull/{patch.upstream_pr},
 commit:{patch.upstream_commit}
Applied-Upstream: {patch.fixed_in}, {UPSTREAM}/commit/{patch.upstream_commit}"""
    date = datetime.fromisoformat(f"{patch.upstream_date or patch.updated}T00:00:00+00:00")
    head = f"""\
From {patch.upstream_commit or "0" * 40} Mon Sep 17 00:00:00 2001
From: {AUTHOR}
Date: {format_datetime(date)}
Subject: [PATCH] {patch.summary}

{description}
{origin}
Last-Update: {patch.updated}
---
"""
    body = b"".join(map(_difference, made.files))
    return head.encode() + b"\n" + body + b"-- \nmegatron_patch\n"


def _difference(edit: FileEdit) -> bytes:
    head = (
        f"diff --git a/{edit.path} b/{edit.path}\n"
        f"index {_blob(edit.before)}..{_blob(edit.after)} 100644\n"
    )
    # Split at line feeds alone: a carriage return before one is a part of the line for git.
    old, new = (re.findall(rb"[^\n]*\n|[^\n]+$", text) for text in (edit.before, edit.after))
    lines = difflib.diff_bytes(
        difflib.unified_diff, old, new, f"a/{edit.path}".encode(), f"b/{edit.path}".encode()
    )
    marked = (
        line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n"
        for line in lines
    )
    return head.encode() + b"".join(marked)


def _blob(content: bytes) -> str:
    """The name that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
