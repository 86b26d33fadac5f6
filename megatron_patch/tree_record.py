"""The record of what ``apply`` has done to a tree: a file of the tree, and so not to be trusted.

It is ``megatron/core/.megatron_patch/applied.json``. Beside it are the contents of files, each
named by its digest. Before the first file of the tree is exchanged, the record says what is going
to be (``pending``): whatever happens then, the next command can finish it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import TreeError
from .tree_files import TreeFiles, digest, give_owner

STATE = Path("megatron", "core", ".megatron_patch")
RECORD = (STATE / "applied.json").as_posix()
IGNORED = (STATE / ".gitignore").as_posix()
#: The form of the record. One of another form is not read.
FORMAT = 2

FILE = re.compile(r"megatron/core/([A-Za-z0-9_]+/)*[A-Za-z0-9_]+\.py")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Change:
    """One file of the tree: the digests of its content before and after."""

    before: str
    after: str


#: By the path of the file, relative to the root of the tree, with ``/``.
Changes = Mapping[str, Change]


@dataclass(frozen=True)
class Pending:
    """What a command is about to change, and the record's files when it is done."""

    command: str
    changes: Changes
    then: Changes


@dataclass(frozen=True)
class Record:
    """What is applied. ``release`` is the version that the tree said it is."""

    release: str | None
    files: Changes = field(default_factory=dict)
    pending: Pending | None = None


def load(files: TreeFiles) -> Record | None:
    """The record of a tree, ``None`` if it has none.

    Raises ``TreeError`` when it is not a record that this version could have written.
    """
    files.path(IGNORED)
    content = files.read(RECORD)
    if content is None:
        return None
    where = files.named / RECORD
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _bad(where, f"it is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise _bad(where, "it is no object")
    if found.get("format") != FORMAT:
        raise TreeError(
            f"{where} was written by another version of megatron_patch (its format is "
            f"{found.get('format', 1)!r}; expected {FORMAT}). Put the files back with that "
            f"version's `megatron-patch revert`, or with git, and remove {where.parent}"
        )
    try:
        release, pending = _text_or_none(found["release"]), found["pending"]
        return Record(
            release, _changes(found["files"]), None if pending is None else _pending(pending)
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _bad(where, f"{type(error).__name__}: {error}") from error


def _pending(entry: Any) -> Pending:
    return Pending(str(entry["command"]), _changes(entry["changes"]), _changes(entry["then"]))


def _changes(entry: Any) -> dict[str, Change]:
    found = {}
    for path, change in entry.items():
        if not FILE.fullmatch(path):
            raise ValueError(f"{path!r} is no source file of megatron/core")
        digests = (change["before"], change["after"])
        if not all(isinstance(name, str) and DIGEST.fullmatch(name) for name in digests):
            raise ValueError(f"{path}: expected digests of 64 hexadecimal digits")
        found[path] = Change(*digests)
    return found


def _text_or_none(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r} is no release")
    return value


def _bad(where: Path, why: str) -> TreeError:
    return TreeError(
        f"{where} is not what `megatron-patch apply` writes: {why}. Nothing was changed. Put the "
        f"files back with git, or install Megatron-Core anew, and remove {where.parent}"
    )


def save(files: TreeFiles, record: Record) -> None:
    """Write the record in one step."""
    content = {"format": FORMAT, **asdict(record)}
    files.put(RECORD, json.dumps(content, indent=2).encode() + b"\n")


def keep(files: TreeFiles, contents: Iterable[bytes]) -> None:
    """Write contents of files beside the record, by their digests."""
    state = files.path(STATE.as_posix())
    if not state.exists():
        state.mkdir()
        give_owner(state, like=state.parent)
    files.put(IGNORED, b"*\n")
    for content in contents:
        files.put((STATE / digest(content)).as_posix(), content)


def content_of(files: TreeFiles, name: str) -> bytes:
    """The content that is kept under this digest. Raises ``TreeError`` if it is not there."""
    content = files.read((STATE / name).as_posix())
    if content is None or digest(content) != name:
        raise TreeError(
            f"{files.named / STATE / name} is gone, or is not what `megatron-patch apply` wrote. "
            f"Put the files back with git, and remove {files.named / STATE}"
        )
    return content


def forget(files: TreeFiles, record: Record | None) -> None:
    """Remove contents that the record does not need; all, the record first, if it is empty."""
    state = files.path(STATE.as_posix())
    if record is None or not (record.files or record.pending):
        files.path(RECORD).unlink(missing_ok=True)
        if state.exists():
            shutil.rmtree(state)
        return
    needed = {change.before for change in record.files.values()}
    for path in state.iterdir():
        if path.name not in (Path(RECORD).name, Path(IGNORED).name, *needed):
            path.unlink()
