"""Commands that are killed at any of their system calls, and several at once."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import megatron_patch
from megatron_patch import in_place, tree_files
from megatron_patch.cli import main
from megatron_patch.errors import TreeError
from megatron_patch.source_tree import SourceTree

from .source_trees import PATH, made, write
from .test_in_place import OTHER, OTHER_PATH, SERIES, TEXT, snapshot

# All system calls by which a command changes what is on the disk.
CALLS = ("open", "fsync", "replace", "unlink", "rmdir", "mkdir", "chmod", "chown", "utime")
PATCHED = TEXT.replace("1", "10").replace("2", "20")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Killed(BaseException):
    """Stands for the death of the process: nothing after this point is done."""


class Killing:
    """Ends the process at one of its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
        self.call, self.calls = call, itertools.count(1)
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))

    def wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def function(*arguments: Any, **named: Any) -> Any:
            if next(self.calls) >= self.call:
                raise Killed
            return real(*arguments, **named)

        return function


def fresh(root: Path) -> SourceTree:
    shutil.rmtree(root, ignore_errors=True)
    write(root, TEXT.encode(), OTHER)
    return write(root, TEXT)


def texts(tree: SourceTree) -> list[str]:
    return [(tree.root / path).read_text() for path in (PATH, OTHER_PATH)]


def apply(tree: SourceTree, *ids: str) -> None:
    in_place.apply(tree, made(tree, SERIES, ids or None))


def interrupted(tree: SourceTree, command: Callable[[], object], call: int) -> bool:
    """Whether the command was killed at that call; otherwise it has ended."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        Killing(monkeypatch, call)
        try:
            command()
        except Killed:
            return True
    return False


def finish(tree: SourceTree) -> str | None:
    with in_place.held(tree) as found:
        return found


def copied(tree: SourceTree, root: Path) -> SourceTree:
    """A copy of a tree, for one command."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(tree.root, root)
    return SourceTree.at(root)


@pytest.mark.parametrize("command", ["apply", "apply more", "revert"])
def test_whenever_a_command_is_killed_the_next_one_finds_all_or_nothing(tmp_path, command):
    start = fresh(tmp_path / "start")
    original, patched = [TEXT] * 2, [PATCHED] * 2
    before, last = snapshot(start), original if command == "revert" else patched
    if command != "apply":
        apply(start, *(["twenty"] if command == "apply more" else ()))
    first = texts(start)
    patches = made(start, SERIES, ["ten", "other"] if command == "apply more" else None)
    told: set[bool] = set()
    for call in itertools.count(1):
        tree = copied(start, tmp_path / "tree")

        def act(tree: SourceTree = tree) -> None:
            in_place.revert(tree) if command == "revert" else in_place.apply(tree, patches)

        if not interrupted(tree, act, call):
            break
        announced = in_place.interrupted(tree)
        found = finish(tree)
        assert (found is None) == (announced is None)
        told.add(found is None)
        assert texts(tree) in (first, last), call
        if found:
            assert (
                f"a `megatron-patch {command.split()[0]}` was interrupted; it is finished" in found
            )
            assert texts(tree) == last
        if call % 8 == 0:  # the tree that is left can be patched and put back like any other
            apply(tree)
            assert texts(tree) == patched
            in_place.revert(tree)
            assert snapshot(tree) == before
    assert told == {True, False}
    assert call > 30


def test_a_revert_that_was_killed_is_done_by_the_same_command_again(tmp_path, capsys):
    tree = fresh(tmp_path)
    apply(tree)
    assert interrupted(tree, lambda: in_place.revert(tree), 40)
    assert main(["revert", "--megatron", str(tmp_path)]) == 0
    assert texts(tree) == [TEXT] * 2
    assert "a `megatron-patch revert` was interrupted; it is finished" in capsys.readouterr().err
    assert main(["revert", "--megatron", str(tmp_path)]) == 1
    assert "there is nothing to revert" in capsys.readouterr().err


def test_to_finish_can_be_interrupted_too(tmp_path):
    start = fresh(tmp_path / "start")
    apply(start)
    assert interrupted(start, lambda: in_place.revert(start), 40)
    for call in itertools.count(1):
        tree = copied(start, tmp_path / "tree")
        assert in_place.interrupted(tree)
        if not interrupted(tree, lambda tree=tree: finish(tree), call):
            break
        finish(tree)
        assert texts(tree) == [TEXT] * 2
        assert not (tree.root / in_place.STATE).exists()
    assert call > 10


def test_what_was_edited_after_the_kill_is_not_written_over(tmp_path, capsys):
    tree = fresh(tmp_path / "tree")
    patches = made(tree, SERIES)
    call = next(
        call
        for call in itertools.count(1)
        if interrupted(fresh(tree.root), lambda: in_place.apply(tree, patches), call)
        and texts(tree).count(TEXT) == 1
    )
    assert call
    (tree.root / PATH).write_text("# mine\n")
    ends = (tree_files.NEW, tree_files.OLD)
    before = {path: there for path, there in snapshot(tree).items() if not path.endswith(ends)}
    for command in (["apply"], ["revert"]):
        assert main([*command, "--megatron", str(tree.root)]) == 1
        error = capsys.readouterr().err
        assert f"{PATH} was changed after a `megatron-patch apply` was interrupted" in error
    assert snapshot(tree) == before
    assert main(["check", "--megatron", str(tree.root)]) == 0
    assert "was interrupted, or is running" in capsys.readouterr().err


def test_an_edit_that_is_saved_meanwhile_is_kept(tmp_path, monkeypatch):
    tree = fresh(tmp_path)
    patches = made(tree, SERIES)
    real = os.replace

    def replace(source: str, target: str) -> None:
        if Path(target).name == Path(PATH).name:  # the first one: the second is saved meanwhile
            (tree.root / OTHER_PATH).write_text("# theirs\n")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with pytest.raises(TreeError, match="was changed meanwhile: do it again"):
            in_place.apply(tree, patches)
    assert texts(tree) == [TEXT, "# theirs\n"]
    assert not (tree.root / in_place.STATE).exists()


APPLY_AND_REVERT = """
import sys
from pathlib import Path
from megatron_patch import in_place
from megatron_patch.errors import TreeError
from megatron_patch.source_tree import SourceTree
from tests.unit.source_trees import made
from tests.unit.test_in_place import SERIES

tree = SourceTree.at(Path(sys.argv[1]))
for round in range(int(sys.argv[2])):
    with in_place.held(tree):
        in_place.apply(tree, made(tree, SERIES))
    try:
        in_place.revert(tree)
    except TreeError as error:
        assert "nothing was applied" in str(error)
with in_place.held(tree):  # else another may revert between reading and writing, which is an error
    in_place.apply(tree, made(tree, SERIES))
"""


def test_several_at_once_come_one_after_the_other(tmp_path):
    tree = fresh(tmp_path)
    package = Path(megatron_patch.__file__).parents[1]
    tests = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (package, tests)))}
    command = [sys.executable, "-W", "ignore", "-c", APPLY_AND_REVERT, str(tree.root), "5"]
    running = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in running:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    assert texts(tree) == [PATCHED] * 2
    in_place.revert(tree)
    assert texts(tree) == [TEXT] * 2


def test_who_waits_too_long_is_told(tmp_path, monkeypatch):
    tree = fresh(tmp_path)
    files = tree_files.TreeFiles(tree.root)
    monkeypatch.setattr(tree_files, "PATIENCE", 0.1)
    with tree_files.locked(files, in_place.LOCK):
        tree_files._held.clear()  # as in another process
        with pytest.raises(TreeError, match="is held by another `megatron-patch apply`"):
            apply(tree)
    apply(tree)
