"""Read and write files of a tree, and nothing outside of it. One process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import TreeError

#: Seconds that a command waits for another one to be done with the tree.
PATIENCE = 60.0
#: What is there for the length of a command, beside the file that it is about.
NEW, OLD = ".megatron_patch-new", ".megatron_patch-old"

_held: set[Path] = set()


class TreeFiles:
    """The files below the root of a tree, named relative to it, with ``/``.

    All methods raise ``TreeError`` when a path leads through a symbolic link, and so perhaps out of
    the tree, or to what is no regular file. How the root itself is named does not matter.
    """

    def __init__(self, root: Path) -> None:
        self.named = root
        self.root = root.resolve()

    def path(self, path: str) -> Path:
        """Where the file is."""
        there = (self.root / path).resolve()
        if there != self.root / path:
            raise TreeError(
                f"{self.named / path} is reached through a symbolic link, to {there}; "
                "name the tree that the file itself is in"
            )
        return there

    def read(self, path: str) -> bytes | None:
        """What is in the file, ``None`` if it is not there."""
        try:
            # Not to wait for who writes into a pipe, and not to follow what is a link by now.
            handle = os.open(self.path(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise TreeError(f"{self.named / path} is no regular file")
            return file.read()

    def exchange(self, contents: Mapping[str, bytes], before: Mapping[str, bytes]) -> None:
        """Write the files, each in one step, all or none; they keep their attributes.

        All that needs room on the disk is written beside the files before the first is exchanged.
        Raises ``TreeError`` when one of them is not what it was ``before``.
        """
        self.clean(contents)
        done: list[str] = []
        try:
            for path, content in contents.items():
                self._beside(path, NEW, content)
                self._beside(path, OLD, before[path])
            for path in contents:
                if self.read(path) != before[path]:
                    raise TreeError(f"{self.named / path} was changed meanwhile: do it again")
                done.append(path)
                os.replace(self._name(path, NEW), self.path(path))
        except BaseException:
            for path in done:
                os.replace(self._name(path, OLD), self.path(path))
            raise
        finally:
            self.clean(contents)

    def put(self, path: str, content: bytes) -> None:
        """Write one file in one step, whether or not it is there."""
        self._name(path, NEW).unlink(missing_ok=True)
        os.replace(self._beside(path, NEW, content), self.path(path))

    def clean(self, paths: Mapping[str, object]) -> None:
        """Remove what a command that was killed has left beside the files."""
        for path in paths:
            for end in (NEW, OLD):
                self._name(path, end).unlink(missing_ok=True)

    def _name(self, path: str, end: str) -> Path:
        there = self.path(path)
        return there.with_name(f".{there.name}{end}")

    def _beside(self, path: str, end: str, content: bytes) -> Path:
        """A new file in the directory of ``path``, with the attributes that the file there has."""
        there, made = self.path(path), self._name(path, end)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(made, flags, 0o644), "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        like = there if there.exists() else there.parent
        give_owner(made, like)
        if like is there:
            shutil.copystat(there, made)
            os.utime(made)  # but for the time: Python compares it with that of compiled files
        else:
            made.chmod(0o644)
        return made


def give_owner(made: Path, like: Path) -> None:
    """Give a file that this process has made the owner of ``like``, which only root may do."""
    if os.geteuid() == 0:
        os.chown(made, like.stat().st_uid, like.stat().st_gid)


def digest(content: bytes) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def locked(files: TreeFiles, path: str) -> Iterator[None]:
    """Nobody else has the lock inside, which a process that is killed lets go of.

    It is on the file at ``path``, which is left as it is. Raises ``TreeError`` when somebody else
    has it for a minute.
    """
    there = files.path(path)
    if there in _held:
        yield
        return
    # Over NFS a lock needs a file that is open for writing.
    mode = os.O_RDWR if os.access(there, os.W_OK) else os.O_RDONLY
    handle = os.open(there, mode | os.O_NOFOLLOW)
    try:
        _wait_for(handle, files)
        _held.add(there)
        yield
    finally:
        _held.discard(there)
        os.close(handle)


def _wait_for(handle: int, files: TreeFiles) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise TreeError(
                    f"{files.named} is held by another `megatron-patch apply` or `revert` for "
                    f"{PATIENCE:.0f} s: wait for it to end, or end it"
                ) from None
            time.sleep(0.05)
