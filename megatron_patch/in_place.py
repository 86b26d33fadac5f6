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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .errors import TreeError
from .source_edits import SourcePatch
from .sources import SourceTree

STATE = Path("megatron", "core", ".megatron_patch")
RECORD = "applied.json"


def apply(tree: SourceTree, patches: Sequence[SourcePatch]) -> list[Path]:
    """Write the edited files, all or none; returns their paths.

    Raises ``TreeError`` when one of them has changes that git has not committed, or is not what an
    earlier ``apply`` left, and ``OSError`` when a file cannot be written.
    """
    before: dict[str, bytes] = {}
    after: dict[str, bytes] = {}
    for made in patches:
        for edit in made.files:
            before.setdefault(edit.path, edit.before)
            after[edit.path] = edit.after
    record = _record(tree)
    _refuse_dirty(tree, [path for path in after if path not in record])
    state = tree.root / STATE
    if after:
        state.mkdir(exist_ok=True)
        (state / ".gitignore").write_text("*\n")
    for path, content in before.items():
        if path not in record:  # else the original of the first apply is kept
            _original(state, path).write_bytes(content)
    new = {**record, **{path: _digest(content) for path, content in after.items()}}
    with _written({tree.root / path: content for path, content in after.items()}):
        if after:
            _replace(state / RECORD, json.dumps(new, indent=2).encode())
    return [tree.root / path for path in after]


def revert(tree: SourceTree) -> list[Path]:
    """Put back the files as they were before the first ``apply``; returns their paths.

    Raises ``TreeError`` when nothing was applied, or when a file was changed since.
    """
    record = _record(tree)
    if not record:
        raise TreeError(f"{tree.root}: nothing was applied there, so there is nothing to revert")
    state = tree.root / STATE
    with _written({tree.root / path: _original(state, path).read_bytes() for path in record}):
        pass
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


def _original(state: Path, path: str) -> Path:
    return state / path.replace("/", "__")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _written(contents: Mapping[Path, bytes]) -> Iterator[None]:
    """The files with new contents; as they were if the body or a write raises."""
    old = {path: path.read_bytes() for path in contents}
    done: list[Path] = []
    try:
        for path, content in contents.items():
            done.append(path)
            _replace(path, content)
        yield
    except BaseException:
        for path in done:
            if path.read_bytes() != old[path]:
                _replace(path, old[path])
        raise


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step, so that nobody sees half of it; its permissions are kept."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, name)
        else:
            os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
