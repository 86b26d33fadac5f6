"""A small upstream that a test makes with git, in the shape of Megatron-LM's repository."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from megatron_patch.definitions import locate

MODULE = "megatron.core.context"
FILE = "megatron/core/context.py"
PACKAGE_FILE = "megatron/core/context/__init__.py"
RESET = f"{MODULE}:Context.reset"
GET = f"{MODULE}:Context.get"


def source(reset: int, get: int | None = 0) -> str:
    """The module, with these versions of its two methods."""
    text = (
        f'"""Not to be imported."""\nraise SystemExit\n\n\nclass Context:\n{method("reset", reset)}'
    )
    return text if get is None else text + method("get", get)


def method(name: str, version: int) -> str:
    return f"    def {name}(self):\n        return {version}\n"


def digest(name: str, version: int) -> str:
    found = locate(MODULE, f"class Context:\n{method(name, version)}", f"Context.{name}")
    assert found is not None
    return found.digest


class Upstream:
    """A repository with a work tree; the first commit is made on ``main``, on 2025-08-01."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.day = 0
        root.mkdir()
        self.git("init", "--quiet")
        self.git("symbolic-ref", "HEAD", "refs/heads/main")
        # A clone may be a partial one.
        self.git("config", "uploadpack.allowFilter", "true")
        self.git("config", "uploadpack.allowAnySHA1InWant", "true")

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        date = f"2025-08-{self.day or 1:02}T12:00:00Z"
        environment = os.environ | {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            "GIT_AUTHOR_DATE": date,
            "GIT_COMMITTER_DATE": date,
            **{
                f"GIT_{who}_{what}": "a@example.invalid"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }
        return subprocess.run(
            ["git", *arguments],
            cwd=cwd or self.root,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def commit(self, files: dict[str, str | None]) -> str:
        """Write or, with ``None``, remove files; a commit a day. Returns its id."""
        self.day += 1
        for name, text in files.items():
            path = self.root / name
            if text is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", f"day {self.day}")
        return self.head()

    def merge(self, branch: str) -> str:
        self.day += 1
        self.git("merge", "--quiet", "--no-ff", "--message", f"day {self.day}", branch)
        return self.head()

    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def switch(self, branch: str, at: str | None = None) -> None:
        """Check a branch out; with ``at``, make it at that commit first."""
        self.git("checkout", "--quiet", *(("-b", branch, at) if at else (branch,)))

    def do(self, said: str) -> str:
        """Run the git command that an error ends with; returns it without the directory."""
        git, option, directory, *command = shlex.split(said[said.rindex(": git ") + 2 :])
        assert (git, option) == ("git", "-C")
        self.git(*command, cwd=Path(directory))
        return " ".join(command)

    def clone(self, to: Path, *options: str) -> Path:
        self.git("clone", "--quiet", *options, f"file://{self.root}", str(to))
        return to
