"""The series as files that ``git am`` takes: one patch a backport, the same bytes every time."""

from __future__ import annotations

import difflib
import hashlib
import re
import textwrap
from collections.abc import Sequence
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path

from .source_edits import FileEdit, SourcePatch

AUTHOR = "megatron_patch <megatron-patch@noreply.invalid>"
UPSTREAM = "https://github.com/NVIDIA/Megatron-LM"
SERIES_FILE = "series"


def file_name(made: SourcePatch) -> str:
    """``0001-input-position-view-cache.patch``."""
    return f"{made.number:04}-{made.patch.id}.patch"


def files(patches: Sequence[SourcePatch]) -> dict[str, bytes]:
    """The content of a directory of patches, by file name; ``series`` lists them in order."""
    content = {file_name(made): patch_text(made) for made in patches}
    series = "".join(f"{name}\n" for name in content)
    return {SERIES_FILE: series.encode(), **content}


def write(patches: Sequence[SourcePatch], output: Path) -> list[Path]:
    """Write the files to the directory; patches of an earlier export are removed."""
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob("[0-9][0-9][0-9][0-9]-*.patch"):
        old.unlink()
    written = []
    for name, content in files(patches).items():
        (output / name).write_bytes(content)
        written.append(output / name)
    return written


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
