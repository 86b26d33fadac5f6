"""Small Megatron trees with modules of a test's own, and what the series makes of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_patch.model import Patch
from megatron_patch.source_edits import SourcePatch, source_patches
from megatron_patch.source_tree import SourceTree

MODULE = "megatron.core.thing"
PATH = "megatron/core/thing.py"


def write(root: Path, text: str | bytes, module: str = MODULE) -> SourceTree:
    """A tree that holds ``megatron.core`` and this module; written over if it is there."""
    core = root / "megatron" / "core"
    core.mkdir(parents=True, exist_ok=True)
    (core / "__init__.py").touch()
    content = text.encode() if isinstance(text, str) else text
    root.joinpath(*module.split(".")).with_suffix(".py").write_bytes(content)
    return SourceTree.at(root)


def made(
    tree: SourceTree, series: Sequence[Patch], selected: Iterable[str] | None = None
) -> list[SourcePatch]:
    """The source patches of ``selected``, or of all."""
    ids = [patch.id for patch in series] if selected is None else selected
    return source_patches(tree, series, ids)[0]


def git(*arguments: str, cwd: Path) -> str:
    """Run git without the settings of the user and the machine; returns what it prints."""
    settings = ["user.name=A", "user.email=a@example.invalid", "core.fsync=none"]
    done = subprocess.run(
        ["git", *[part for setting in settings for part in ("-c", setting)], *arguments],
        cwd=cwd,
        env={
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode()


def repository(root: Path) -> None:
    """Make ``root`` a repository with all of it committed."""
    git("init", "-q", cwd=root)
    git("add", "--force", ".", cwd=root)
    git("commit", "-q", "-m", "as it was", cwd=root)


def add_compiled(root: Path) -> None:
    """Give a copy of the installed Megatron its compiled code, which is valid where none is edited.

    Python takes that of a file only if the file has the time and the size that it was made of.
    """
    installed = SourceTree.installed().root / "megatron"
    for cache in installed.rglob("__pycache__"):
        there = root / "megatron" / cache.relative_to(installed)
        shutil.copytree(cache, there, dirs_exist_ok=True)
