"""Trees that somebody else has made: nothing outside of them is read into them or written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from megatron_patch import in_place, tree_files
from megatron_patch.errors import TreeError
from megatron_patch.source_tree import SourceTree
from megatron_patch.tree_record import FORMAT, RECORD

from .source_trees import PATH, made, write
from .test_in_place import SERIES, TEXT, snapshot

PAYLOAD = b"import os\n"


class Hostile:
    """A tree with a state folder that `apply` did not write, and a file outside of it."""

    def __init__(self, root: Path, outside: Path) -> None:
        self.tree = write(root, TEXT)
        self.outside = outside / "victim.py"
        self.outside.write_text("precious\n")
        self.state = root / in_place.STATE
        self.state.mkdir()
        self.put(PAYLOAD)
        self.put(TEXT.encode())
        self.put(self.outside.read_bytes())

    def put(self, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        (self.state / name).write_bytes(content)
        return name

    def change(self, old: bytes = TEXT.encode()) -> dict[str, str]:
        return {"before": self.put(PAYLOAD), "after": self.put(old)}

    def record(self, content: Any) -> None:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (self.tree.root / RECORD).write_bytes(text)

    def refuses(self, match: str) -> None:
        """Neither `apply` nor `revert` writes anything, and both say why."""
        before, victim = snapshot(self.tree), self.outside.read_bytes()
        for command in (
            in_place.revert,
            lambda tree: in_place.apply(tree, made(tree, SERIES[1:2])),
        ):
            with pytest.raises(TreeError, match=match):
                command(self.tree)
        assert snapshot(self.tree) == before
        assert self.outside.read_bytes() == victim


@pytest.fixture
def hostile(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    return Hostile(tmp_path, tmp_path_factory.mktemp("outside"))


def test_the_folder_is_what_a_record_needs(hostile):
    """So the other trees are refused only for what is wrong with them."""
    files = {PATH: hostile.change()}
    hostile.record({"format": FORMAT, "release": None, "files": files, "pending": None})
    assert in_place.revert(hostile.tree) == [hostile.tree.root / PATH]
    assert (hostile.tree.root / PATH).read_bytes() == PAYLOAD


@pytest.mark.parametrize(
    "path",
    [
        "{outside}",
        "../{up}",
        "megatron/core/../../../{up}",
        "megatron/core/./thing.py",
        "megatron/core//thing.py",
        "megatron/core/.megatron_patch/applied.py",
        "megatron/core/thing.py\n",
        "megatron/core/thing.txt",
        "setup.py",
        "",
    ],
)
@pytest.mark.parametrize("where", ["files", "changes", "then"])
def test_a_path_that_is_no_source_file_of_the_tree(hostile, path, where):
    outside = hostile.outside
    path = path.format(outside=outside, up=os.path.relpath(outside, hostile.tree.root))
    files: dict[str, Any] = {"files": {}, "changes": {}, "then": {}}
    files[where] = {path: hostile.change(outside.read_bytes())}
    pending = {"command": "apply", "changes": files["changes"], "then": files["then"]}
    hostile.record({"format": FORMAT, "release": None, "files": files["files"], "pending": pending})
    hostile.refuses("is no source file of megatron/core")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        ([], "is no object"),
        ({PATH: "0" * 64}, "another version of megatron_patch .its format is 1; expected 2"),
        ({"format": 3}, "its format is 3"),
        ({"format": FORMAT}, "KeyError"),
        ({"format": FORMAT, "release": 1, "files": {}, "pending": None}, "1 is no release"),
        ({"format": FORMAT, "release": "", "files": [], "pending": None}, "AttributeError"),
        ({"format": FORMAT, "release": "", "files": {PATH: 1}, "pending": None}, "TypeError"),
        ({"format": FORMAT, "release": "", "files": {}, "pending": []}, "TypeError"),
        ({"format": FORMAT, "release": "", "files": {}, "pending": [1]}, "TypeError"),
        (
            {"format": FORMAT, "release": "", "pending": None}
            | {"files": {PATH: {"before": "../../../victim", "after": "0" * 64}}},
            "64 hexadecimal digits",
        ),
    ],
)
def test_a_record_of_another_form(hostile, content, why):
    hostile.record(content)
    hostile.refuses(why)


def test_content_that_is_not_what_its_name_says(hostile):
    change = hostile.change()
    (hostile.state / change["before"]).write_bytes(b"other")
    files = {PATH: change}
    hostile.record({"format": FORMAT, "release": None, "files": files, "pending": None})
    with pytest.raises(TreeError, match="is gone, or is not what"):
        in_place.revert(hostile.tree)
    assert (hostile.tree.root / PATH).read_text() == TEXT


@pytest.mark.parametrize("linked", ["applied.json", ".gitignore", "the folder"])
def test_a_link_that_leads_out(hostile, tmp_path_factory, linked):
    files = {PATH: hostile.change()}
    hostile.record({"format": FORMAT, "release": None, "files": files, "pending": None})
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "there"
    if linked == "the folder":
        hostile.state.rename(elsewhere)
        hostile.state.symlink_to(elsewhere)
    else:
        file = hostile.state / linked
        if file.exists():
            file.rename(elsewhere)
        else:
            elsewhere.write_text("precious\n")
        file.symlink_to(elsewhere)
    there = elsewhere.read_bytes() if elsewhere.is_file() else sorted(os.listdir(elsewhere))
    hostile.refuses("is reached through a symbolic link")
    assert there == (
        elsewhere.read_bytes() if elsewhere.is_file() else sorted(os.listdir(elsewhere))
    )


def test_content_that_is_a_link(hostile):
    files = {PATH: hostile.change(), "megatron/core/__init__.py": hostile.change(b"")}
    hostile.record({"format": FORMAT, "release": None, "files": files, "pending": None})
    content = hostile.state / files[PATH]["before"]
    hostile.outside.write_bytes(content.read_bytes())
    content.unlink()
    content.symlink_to(hostile.outside)
    before = snapshot(hostile.tree)
    with pytest.raises(TreeError, match="is reached through a symbolic link"):
        in_place.revert(hostile.tree)
    assert snapshot(hostile.tree) == before


def test_a_link_where_a_file_is_put_for_the_length_of_a_command(hostile):
    for end in (tree_files.NEW, tree_files.OLD):
        (hostile.tree.root / "megatron/core" / f".thing.py{end}").symlink_to(hostile.outside)
    (hostile.state / f".applied.json{tree_files.NEW}").symlink_to(hostile.outside)
    in_place.apply(hostile.tree, made(hostile.tree, SERIES[1:2]))
    assert hostile.outside.read_text() == "precious\n"
    in_place.revert(hostile.tree)
    assert hostile.outside.read_text() == "precious\n"
    assert (hostile.tree.root / PATH).read_text() == TEXT


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(hostile):
    os.mkfifo(hostile.tree.root / RECORD)
    with pytest.raises(TreeError, match="is no regular file"):
        in_place.revert(hostile.tree)


def test_the_commands_say_it_in_a_line(hostile, capsys):
    from megatron_patch.cli import main

    hostile.record(b"{}")
    for command in ("revert", "check", "apply"):
        assert main([command, "--megatron", str(hostile.tree.root)]) != 0
        assert capsys.readouterr().err.count("another version of megatron_patch") == 1
    assert SourceTree.at(hostile.tree.root) == hostile.tree
