"""Make the source edits of the series in a tree itself, and take them back.

What the files were before is kept beside them, in ``megatron/core/.megatron_patch/``: a whole
method that was replaced could not be had back from the edited source.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import TreeError
from .source_edits import SourcePatch
from .source_tree import SourceTree

STATE = Path("megatron", "core", ".megatron_patch")
RECORD = "applied.json"


def apply(tree: SourceTree, patches: Sequence[SourcePatch]) -> list[Path]:
    """Write the edited files, all or none; returns their paths.

    Raises ``TreeError`` when one of them has changes that git has not committed, is not what an
    earlier ``apply`` left, is not what the patches were made from, or is reached through a symbolic
    link, and ``OSError``, with the tree as
    it was, when a file cannot be written.
    """
    before: dict[str, bytes] = {}
    after: dict[str, bytes] = {}
    for made in patches:
        for edit in made.files:
            before.setdefault(edit.path, edit.before)
            after[edit.path] = edit.after
    record = _record(tree)
    if not after:
        return []
    _refuse_links(tree, list(after))
    _refuse_dirty(tree, [path for path in after if path not in record])
    for path, content in before.items():
        if (tree.root / path).read_bytes() != content:
            raise TreeError(f"{tree.root / path} was changed while it was read: do it again")
    state = tree.root / STATE
    new = {**record, **{path: _digest(content) for path, content in after.items()}}
    try:
        state.mkdir(exist_ok=True)
        (state / ".gitignore").write_text("*\n")
        for path, content in before.items():
            if path not in record:  # else the original of the first apply is kept
                _original(state, path).write_bytes(content)
        contents = {tree.root / path: content for path, content in after.items()}
        _write({**contents, state / RECORD: json.dumps(new, indent=2).encode()})
    except BaseException:
        if not record:
            shutil.rmtree(state, ignore_errors=True)
        raise
    return [tree.root / path for path in after]


def revert(tree: SourceTree) -> list[Path]:
    """Put back the files as they were before the first ``apply``; returns their paths.

    Raises ``TreeError`` when nothing was applied, or when a file was changed since.
    """
    record = _record(tree)
    if not record:
        raise TreeError(f"{tree.root}: nothing was applied there, so there is nothing to revert")
    _refuse_links(tree, list(record))
    state = tree.root / STATE
    _write({tree.root / path: _original(state, path).read_bytes() for path in record})
    (state / RECORD).unlink()  # first: with a part of the rest gone it would be wrong
    shutil.rmtree(state)
    return [tree.root / path for path in record]


def _record(tree: SourceTree) -> dict[str, str]:
    """The digests that ``apply`` left, by path; checked against the files."""
    file = tree.root / STATE / RECORD
    if not file.is_file():
        return {}
    record: dict[str, str] = json.loads(file.read_bytes())
    for path, digest in record.items():
        if _digest((tree.root / path).read_bytes()) != digest:
            raise TreeError(
                f"{tree.root / path} was changed after `megatron-patch apply`. Undo that change, "
                f"or take the file's patches out by hand and remove {tree.root / STATE}"
            )
    return record


def _refuse_dirty(tree: SourceTree, paths: Sequence[str]) -> None:
    """Raise if git has one of the files, with changes. Without git there is nothing to lose."""
    if not paths or shutil.which("git") is None:
        return
    done = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no", "--", *paths],
        cwd=tree.root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0 and done.stdout.strip():
        raise TreeError(
            f"{tree.root} has changes that are not committed:\n{done.stdout.rstrip()}\n"
            "Commit or stash them, so that they and the patches can be told apart"
        )


def _refuse_links(tree: SourceTree, paths: Sequence[str]) -> None:
    """Raise if one of the files may be outside the tree; how its root is named does not matter."""
    root = tree.root.resolve()
    for path in paths:
        there = (root / path).resolve()
        if there != root / path:
            raise TreeError(
                f"{tree.root / path} is reached through a symbolic link, to {there}; "
                "name the tree that the file itself is in"
            )


def _original(state: Path, path: str) -> Path:
    return state / path.replace("/", "__")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(contents: Mapping[Path, bytes]) -> None:
    """Write the files, each in one step, all or none. Their permissions are kept.

    All that needs room on the disk is written beside the files before the first is exchanged.
    """
    with contextlib.ExitStack() as temporary:
        new = {path: _beside(path, content, temporary) for path, content in contents.items()}
        old = {
            path: _beside(path, path.read_bytes(), temporary) for path in contents if path.exists()
        }
        try:
            for path, file in new.items():
                os.replace(file, path)
        except BaseException:
            for path in contents:
                if path in old:
                    os.replace(old[path], path)
                else:
                    path.unlink(missing_ok=True)
            raise


def _beside(path: Path, content: bytes, temporary: contextlib.ExitStack) -> Path:
    """A file in the directory of ``path`` and with its permissions, removed at the end."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    file = Path(name)
    temporary.callback(file.unlink, missing_ok=True)
    with os.fdopen(handle, "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    if path.exists():
        shutil.copymode(path, file)
    else:
        file.chmod(0o644)
    return file
