"""Run git on a clone, without the network and without the user's environment variables for git."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TypeVar

Opened = TypeVar("Opened", bound="Git")


class CloneError(Exception):
    """The clone does not have what is asked for. The message names the next step."""


class Git:
    """The git repository at ``path``, a clone with a work tree or a bare one.

    A context manager: the process that reads objects runs until the end of it. Raises
    ``CloneError`` when there is no repository at ``path`` itself, or only part of a history.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader: subprocess.Popen[bytes] | None = None
        if not path.is_dir():
            raise CloneError(f"{path} is no directory: {_clone_into(path)}")
        try:
            shallow = self.run("rev-parse", "--is-shallow-repository")
        except CloneError as error:
            raise CloneError(f"{path} is no clone ({error}): {_clone_into(path)}") from error
        if shallow.strip() == "true":
            raise CloneError(
                f"{path} is a shallow clone, without the history before some commit: "
                f"git -C {path} fetch --unshallow"
            )

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process that reads objects; the next read starts another one."""
        reader, self._reader = self._reader, None
        if reader is not None:
            for pipe in (reader.stdin, reader.stdout):
                if pipe is not None:
                    pipe.close()
            reader.wait()

    def run(self, *arguments: str, lines: Iterable[str] = ()) -> str:
        """What git prints; ``lines`` is what it reads. Raises ``CloneError`` when it fails."""
        return self.run_raw(*arguments, lines=lines).decode("utf-8", "surrogateescape")

    def run_raw(self, *arguments: str, lines: Iterable[str] = ()) -> bytes:
        """As :meth:`run`, undecoded."""
        try:
            done = subprocess.run(
                self._command(*arguments),
                input="".join(f"{line}\n" for line in lines).encode(),
                capture_output=True,
                env=self._environment(),
                check=False,
            )
        except FileNotFoundError as error:
            raise CloneError("git is not on PATH: install it") from error
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise CloneError(f"git {arguments[0]}: {said[-1] if said else done.returncode}")
        return done.stdout

    def blob(self, name: str) -> bytes:
        """The content of the object with this full id. Raises ``CloneError`` when it is missing."""
        stdin, stdout = self._pipes()
        try:
            stdin.write(f"{name}\n".encode())
            stdin.flush()
        except BrokenPipeError:
            pass  # the next line finds that there is no answer
        header = stdout.readline().split()
        if len(header) != 3 or header[1] != b"blob":
            self.close()
            raise CloneError(self.incomplete(f"{name} is missing"))
        content = stdout.read(int(header[2]))
        stdout.read(1)  # a line end
        return content

    def incomplete(self, what: str) -> str:
        """Say that the clone lacks something that its commits name, and what to do."""
        return (
            f"{self.path} is a partial clone, or a damaged one: {what}. "
            f"Fetch the rest: git -C {self.path} fetch --refetch --no-filter --tags origin "
            f"'{self.refspec('*')}'"
        )

    def places(self) -> tuple[str, str]:
        """The namespaces of branches; upstream's own, as they were fetched, are in the last one."""
        bare = self.run("rev-parse", "--is-bare-repository").strip() == "true"
        heads, remotes = "refs/heads/", "refs/remotes/origin/"
        return (remotes, heads) if bare else (heads, remotes)

    def refspec(self, branch: str) -> str:
        """The refspec that ``git fetch`` needs for ``branch``, or for all of them (``*``)."""
        return f"+refs/heads/{branch}:{self.places()[-1]}{branch}"

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._reader is None:
            self._reader = subprocess.Popen(
                self._command("cat-file", "--batch"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment(),
            )
        assert self._reader.stdin is not None
        assert self._reader.stdout is not None
        return self._reader.stdin, self._reader.stdout

    def _command(self, *arguments: str) -> list[str]:
        return ["git", "-C", str(self.path), *arguments]

    def _environment(self) -> dict[str, str]:
        """The environment of git: it reads this repository and no other, and uses no network."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        return environment | {
            # A directory inside of another repository is no clone.
            "GIT_CEILING_DIRECTORIES": str(self.path.resolve().parent),
            # What a partial clone lacks is not fetched one by one, behind the user's back.
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_ALLOW_PROTOCOL": "none",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }


def _clone_into(path: Path) -> str:
    """What to do where ``path`` is no clone: make one there, or beside what is there."""
    command = "git clone --no-checkout https://github.com/NVIDIA/Megatron-LM"
    return f"name the root of a clone, such as one made by {command}" + (
        "" if path.exists() else f" {path}"
    )
