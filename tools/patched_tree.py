"""Make a git repository of a Megatron-Core whose source has the patches in it.

    python tools/patched_tree.py --output /tmp/tree
    PYTHONPATH=/tmp/tree MEGATRON_PATCH_TEST_SOURCE=1 pytest tests/backports tests/upstream

The first commit is `megatron/core` of the installed release, or of another tree; the patches that
are applicable to it, as `megatron-patch export` writes them, are put on top with `git am`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_patch import export
from megatron_patch.backports import SERIES
from megatron_patch.errors import DriftedError, NotMegatronError
from megatron_patch.source_edits import source_patches
from megatron_patch.source_tree import SourceTree
from megatron_patch.sources import megatron_version

# Nothing of the user's: no hook, no signature, no change of line ends.
SETTINGS = {
    "user.name": "patched_tree",
    "user.email": "patched-tree@noreply.invalid",
    "commit.gpgSign": "false",
    "core.hooksPath": os.devnull,
    "core.autocrlf": "false",
}


class GitError(Exception):
    """git has failed; the message is what it said."""


def git(*arguments: str, cwd: Path) -> str:
    """Run git in ``cwd``; returns what it prints."""
    settings = [part for key, value in SETTINGS.items() for part in ("-c", f"{key}={value}")]
    done = subprocess.run(
        ["git", *settings, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise GitError(f"git {arguments[0]}: {done.stdout}{done.stderr}".rstrip())
    return done.stdout


def build(source: SourceTree, output: Path) -> str:
    """Make the repository in ``output``; returns what is in it.

    Raises ``DriftedError`` when the source of a patch is not known, and ``GitError``.
    """
    selected = [patch.id for patch in SERIES if patch.default]
    made, skipped = source_patches(source, SERIES, selected)
    core = Path("megatron", "core")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source.root / core, output / core, ignore=ignored)
    git("init", "--quiet", cwd=output)
    git("add", "--force", ".", cwd=output)
    version = megatron_version(source.read) or "of unknown version"
    git("commit", "--quiet", "--message", f"Megatron-Core {version}", cwd=output)
    with tempfile.TemporaryDirectory() as directory:
        _, *patches = export.write(made, Path(directory))
        if patches:  # without one, git would read from the terminal
            git("am", "--quiet", "--keep-cr", *map(str, patches), cwd=output)
    lines = git("log", "--reverse", "--format=%h %s", cwd=output).splitlines()
    lines += [f"left out {entry.patch.id}: {entry.verdict} ({entry.reason})" for entry in skipped]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the tree; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Make a git repository of a Megatron-Core whose source has the patches in it.",
        epilog="exit status: 0; 1 when a patch is drifted or git fails; 2 when there is no "
        "Megatron tree, or DIR is not empty",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a new directory")
    parser.add_argument(
        "--megatron", metavar="TREE", type=Path, help="default: the installed Megatron-Core"
    )
    options = parser.parse_args(arguments)
    output: Path = options.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        parser.error(f"--output: expected a new or an empty directory; {output} is not empty")
    try:
        tree = SourceTree.at(options.megatron) if options.megatron else SourceTree.installed()
        print(build(tree, output))
    except NotMegatronError as error:
        print(f"patched_tree: {error}", file=sys.stderr)
        return 2
    except (DriftedError, GitError) as error:
        print(f"patched_tree: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
