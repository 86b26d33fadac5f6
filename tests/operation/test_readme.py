"""The first things that the README shows are what happens."""

from __future__ import annotations

import glob
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from megatron_patch import State
from megatron_patch.source_tree import SourceTree

from ..conftest import expected_state
from ..unit.source_trees import git, repository
from .test_command import megatron_patch_command

README = Path(__file__).parents[2] / "README.md"


def test_the_first_example_prints_what_is_patched():
    (example, *_) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", example],
        env={k: v for k, v in os.environ.items() if k != "MEGATRON_PATCH"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    states = dict(line.split(": ") for line in done.stdout.splitlines())
    assert states["block-allocator-reset"] == expected_state(State.APPLIED)
    assert states.keys() > {"input-position-view-cache", "http-parameters"}


def test_each_page_that_the_readme_links_to_is_there():
    text = README.read_text("utf-8")
    pages = {link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)}
    pages |= set(re.findall(r"\]\(([^)#]*)#", text))
    assert len(pages) > 5
    assert [page for page in pages if not (README.parent / page).exists()] == []
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).strip().replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def lines_of_the_command() -> list[str]:
    """The lines of the README's terminal blocks that call our command."""
    blocks = re.findall(r"```console\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("megatron-patch ")]


def test_each_command_of_the_readme_has_a_help_that_names_its_options():
    lines = lines_of_the_command()
    assert len(lines) > 8
    helps: dict[str, str] = {}
    for line in lines:
        command, *arguments = shlex.split(line, comments=True)[1:]
        options = [a for a in itertools.takewhile(lambda a: a != "--", arguments) if a[:2] == "--"]
        if command not in helps:
            helps[command] = megatron_patch_command(command, "--help").stdout
        assert helps[command], line
        assert [option for option in options if f"{option} " not in helps[command]] == [], line


def test_the_series_of_a_fork_is_where_git_is_told_to_look(tmp_path):
    """Both commands of that line, as written: ours in another directory, git's in the fork."""
    (line,) = [x for x in lines_of_the_command() if x.startswith("megatron-patch export ")]
    first, _, then = line.partition(" # then, in the fork: ")
    fork, elsewhere = tmp_path / "fork", tmp_path / "elsewhere"
    released = SourceTree.installed().root / "megatron"
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(released, fork / "megatron", ignore=ignored)
    repository(fork)
    elsewhere.mkdir()

    def at_home(word: str) -> str:
        return word.replace("~", str(tmp_path))

    arguments = [at_home(word) for word in shlex.split(first)[1:]]
    done = megatron_patch_command(*arguments, cwd=elsewhere, MEGATRON_PATCH="block-allocator-reset")
    assert done.returncode == 0, done.stderr
    tool, *arguments = [at_home(word) for word in shlex.split(then)]
    assert tool == "git"
    files = [str(file) for pattern in arguments[1:] for file in glob.glob(pattern)]
    assert files, then
    git(arguments[0], *files, cwd=fork)
    assert "block" in git("log", "-1", "--format=%s", cwd=fork)
