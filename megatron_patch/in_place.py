"""Make the source edits of the series in a tree itself, and take them back.

The original files are kept beside them, in ``megatron/core/.megatron_patch/``: from the edited
source alone, a method that was replaced as a whole could not be restored. A command that is killed
is finished by the next one, and two commands never write at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import tree_record
from .errors import TreeError
from .source_edits import SourcePatch
from .source_tree import SourceTree
from .sources import megatron_version
from .tree_files import TreeFiles, digest, locked
from .tree_record import STATE, Change, Pending, Record

# Whatever else happens to the tree, its package keeps this file.
LOCK = "megatron/core/__init__.py"


@contextlib.contextmanager
def held(tree: SourceTree) -> Iterator[str | None]:
    """A context in which nobody else applies or reverts, from reading the tree to writing it.

    Its value says that a command had been killed, and is finished now; ``None`` where none was.
    Raises ``TreeError`` when that cannot be finished.
    """
    files = TreeFiles(tree.root)
    with locked(files, LOCK):
        record = tree_record.load(files)
        if record is None or record.pending is None:
            if record is None or not record.files:
                tree_record.forget(files, None)  # a command was killed before, or after, it all
            yield None
            return
        command, count = record.pending.command, len(record.pending.changes)
        _finish(files, record)
        yield (
            f"{tree.root}: a `megatron-patch {command}` was interrupted; it is finished now "
            f"({count} files)"
        )


def interrupted(tree: SourceTree) -> str | None:
    """The sentence about a command that was killed, ``None`` where none was."""
    record = tree_record.load(TreeFiles(tree.root))
    if record is None or record.pending is None:
        return None
    return (
        f"{tree.root}: a `megatron-patch {record.pending.command}` was interrupted, or is running; "
        "the next `apply` or `revert` finishes it"
    )


def apply(tree: SourceTree, patches: Sequence[SourcePatch], *, force: bool = False) -> list[Path]:
    """Write the edited files, all or none; returns their paths.

    Raises ``TreeError`` when one of them has changes that git has not committed, or git cannot say
    (unless with ``force``), when it is not what an earlier ``apply`` left, is not what the patches
    were made from, or is reached through a symbolic link, and ``OSError``, with the tree as it was,
    when a file cannot be written.
    """
    before: dict[str, bytes] = {}
    after: dict[str, bytes] = {}
    for made in patches:
        for edit in made.files:
            before.setdefault(edit.path, edit.before)
            after[edit.path] = edit.after
    if not after:
        return []
    with held(tree):
        files = TreeFiles(tree.root)
        there = still_applied(tree, files, tree_record.load(files), committed=True)
        if not force:
            _refuse_dirty(tree, [path for path in after if path not in there])
        for path, content in before.items():
            if files.read(path) != content:
                raise TreeError(f"{tree.root / path} was changed while it was read: do it again")
        then = dict(there)
        for path, content in after.items():
            # The digest from before the first `apply` is kept.
            first = there[path].before if path in there else digest(before[path])
            then[path] = Change(first, digest(content))
        record = Record(megatron_version(tree.read), there)
        make(files, record, "apply", before, after, then)
    return [tree.root / path for path in after]


def revert(tree: SourceTree) -> list[Path]:
    """Put back the files as they were before the first ``apply``; returns their paths.

    What somebody else has put back already is not among them. Raises ``TreeError`` when nothing was
    applied, or when a file was changed since.
    """
    with held(tree):
        files = TreeFiles(tree.root)
        record = tree_record.load(files)
        if record is None:
            raise TreeError(
                f"{tree.root}: nothing was applied there, so there is nothing to revert"
            )
        there = still_applied(tree, files, record, committed=False)
        before = {path: files.read(path) or b"" for path in there}
        after = {path: tree_record.content_of(files, there[path].before) for path in there}
        make(files, Record(record.release, there), "revert", before, after, {})
    return [tree.root / path for path in there]


def make(
    files: TreeFiles,
    record: Record,
    command: str,
    before: Mapping[str, bytes],
    after: Mapping[str, bytes],
    then: tree_record.Changes,
) -> None:
    """Exchange the files, and write the record with those of ``then``, all or nothing."""
    changes = {path: Change(digest(before[path]), digest(after[path])) for path in after}
    try:
        tree_record.keep(files, {*before.values(), *after.values()})
        pending = Pending(command, changes, then)
        tree_record.save(files, Record(record.release, record.files, pending))
        files.exchange(after, before)
        try:
            tree_record.save(files, Record(record.release, then))
        except BaseException:
            files.exchange(before, after)
            raise
    except BaseException:
        # Otherwise some files are exchanged, and the record says what the next command has to
        # finish.
        if not any(files.read(path) == content for path, content in after.items()):
            if record.files:
                tree_record.save(files, record)
            tree_record.forget(files, record)
        raise
    tree_record.forget(files, Record(record.release, then))


def _finish(files: TreeFiles, record: Record) -> None:
    """Do what a command that was killed had left to do."""
    pending = record.pending
    assert pending is not None
    files.clean(pending.changes)
    left: dict[str, Change] = {}
    for path, change in pending.changes.items():
        content = files.read(path)
        found = None if content is None else digest(content)
        if found == change.after:
            continue
        if found != change.before:
            raise TreeError(
                f"{files.named / path} was changed after a `megatron-patch {pending.command}` was "
                f"interrupted. Put the file back, and do that again; or, to leave all files as "
                f"they are now, remove {files.named / STATE}"
            )
        left[path] = change
    files.exchange(
        {path: tree_record.content_of(files, change.after) for path, change in left.items()},
        {path: files.read(path) or b"" for path in left},
    )
    done = Record(record.release, pending.then)
    tree_record.save(files, done)
    tree_record.forget(files, done)


def still_applied(
    tree: SourceTree, files: TreeFiles, record: Record | None, *, committed: bool
) -> dict[str, Change]:
    """The files of the record that are still as ``apply`` left them.

    Left out are files that somebody has put back or removed, files of another release that is there
    by now, and, with ``committed``, files that are committed to git as they are. Raises
    ``TreeError`` when a file was changed in any other way.
    """
    there: dict[str, Change] = {}
    for path, change in record.files.items() if record else ():
        content = files.read(path)
        found = None if content is None else digest(content)
        if found == change.after:
            there[path] = change
        elif found not in (change.before, None):
            assert record is not None
            is_other = megatron_version(tree.read) != record.release
            if not is_other and not (committed and _is_committed(tree, path)):
                raise TreeError(
                    f"{tree.root / path} was changed after `megatron-patch apply`. Undo that "
                    "change, or take the file's patches out by hand and remove "
                    f"{tree.root / STATE}"
                )
    return there


def _is_committed(tree: SourceTree, path: str) -> bool:
    if not _is_in_repository(tree):
        return False
    tracked = _git(tree, "ls-files", "--error-unmatch", "--", path)
    return tracked.returncode == 0 and _status(tree, [path]) == ""


def _refuse_dirty(tree: SourceTree, paths: Sequence[str]) -> None:
    """Raise if git says that one of the files has changes. It is asked in a repository only."""
    if not paths or not _is_in_repository(tree):
        return
    status = _status(tree, paths)
    if status:
        raise TreeError(
            f"{tree.root} has changes that are not committed:\n{status}\n"
            "Commit or stash them, so that they and the patches can be told apart, or add --force"
        )


def _is_in_repository(tree: SourceTree) -> bool:
    root = tree.root.resolve()
    return any((folder / ".git").exists() for folder in (root, *root.parents))


def _status(tree: SourceTree, paths: Sequence[str]) -> str:
    """What git says of the files. Raises ``TreeError`` when it does not say anything."""
    why = "git is not installed"
    if shutil.which("git") is not None:
        done = _git(tree, "status", "--porcelain", "--untracked-files=no", "--", *paths)
        if done.returncode == 0:
            return done.stdout.rstrip()
        why = done.stderr.strip()
    raise TreeError(
        f"{tree.root} is in a git repository, and whether its files have changes that are not "
        f"committed cannot be said: {why}\nMend that, or add --force"
    )


def _git(tree: SourceTree, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git without what a repository may have it run."""
    return subprocess.run(
        ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments],
        cwd=tree.root,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
