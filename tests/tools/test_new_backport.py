"""A new backport starts with all of its files, or with none."""

from __future__ import annotations

import ast
import re
import shutil
from datetime import date, timedelta
from pathlib import Path

import pytest

from megatron_patch.backports import SERIES
from megatron_patch.errors import LedgerError
from tests.unit.source_trees import MODULE, write
from tools import new_backport
from tools.history import ledger_file
from tools.starting import series
from tools.starting.stubs import FILL, Stub

TARGET = f"{MODULE}:Thing.get"
ID = "some-new-thing"
OLD = "class Thing:\n    def get(self):\n        return 1\n"
NEW = OLD.replace("1", "2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with the files that the tool needs."""
    made = tmp_path / "repository"
    for path in (new_backport.SERIES_FILE, new_backport.SOURCES):
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(new_backport.REPOSITORY / path, made / path)
    return made


@pytest.fixture
def tree(tmp_path: Path) -> str:
    return str(write(tmp_path / "old", OLD).root)


def contents(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_text() for path in files}


def start(root: Path, *arguments: str) -> int:
    return new_backport.main(arguments, root)


@pytest.mark.parametrize("ours", [False, True])
def test_all_files_are_written_and_say_what_is_to_be_filled_in(root, tree, capsys, ours):
    before = contents(root)
    assert start(root, ID, TARGET, "--megatron", tree, *["--ours"] * ours) == 0
    printed = capsys.readouterr().out
    after = contents(root)
    folder = f"megatron_patch/backports/{'ours' if ours else 'upstream'}"
    new = [f"{folder}/some_new_thing.py", f"{folder}/some_new_thing.diff"]
    new += ["tests/backports/test_some_new_thing.py", *[f"docs/upstream/{ID}.md"] * ours]
    assert after.keys() - before.keys() == {*new}
    for path in new:
        assert FILL in after[path]
        assert path in printed
    assert ast.parse(after[new[0]])
    assert ast.parse(after[new[2]])
    (updated,) = re.findall(r'updated="(.*)"', after[new[0]])
    assert abs(date.today() - date.fromisoformat(updated)) <= timedelta(days=1)
    assert f'"{TARGET}"' in after[new[0]]
    assert "--- a/megatron/core/thing.py\n" in after[new[1]]
    assert "@@ Thing.get @@\n" in after[new[1]]
    assert "@proof\n" in after[new[2]]
    index = after["megatron_patch/backports/__init__.py"]
    assert index.endswith("    SOME_NEW_THING,\n)\n")
    name = "ours" if ours else "upstream"
    assert f"\nfrom .{name}.some_new_thing import SOME_NEW_THING\n" in index
    assert (
        index.replace(f"from .{name}.some_new_thing import SOME_NEW_THING\n", "").replace(
            "    SOME_NEW_THING,\n", ""
        )
        == (before["megatron_patch/backports/__init__.py"])
    )


def test_imports_stay_in_order(root):
    text = (root / new_backport.SERIES_FILE).read_text()
    for folder in ("ours", "upstream"):
        for name in ("aaa", "one_token_prefill_", "zzz"):
            made = series.with_record(text, folder, name, name.upper())
            imported = [line.split()[1] for line in made.splitlines() if line.startswith("from .")]
            assert imported[1:] == sorted(imported[1:])
            assert f".{folder}.{name}" in imported


def test_each_digest_is_shown_once_with_the_trees_that_have_it(root, tmp_path, capsys):
    trees = {
        name: write(tmp_path / name, text).root
        for name, text in {"one": OLD, "two": NEW, "three": OLD + "# more\n", "four": ""}.items()
    }
    assert start(root, ID, TARGET, "--megatron", *map(str, trees.values())) == 0
    _, _, lines = capsys.readouterr().out.partition(f"\n{TARGET}\n")
    old, new, absent = lines.splitlines()
    assert old.endswith(
        f"  of unknown version in {trees['one']}, of unknown version in {trees['three']}"
    )
    assert new.endswith(f"  of unknown version in {trees['two']}")
    assert absent == f"none  of unknown version in {trees['four']}"


def test_a_target_that_is_surveyed_is_shown_in_all_releases(root, capsys):
    target = SERIES[0].target
    assert start(root, ID, target) == 0
    _, _, lines = capsys.readouterr().out.partition(f"\n{target}\n")
    surveyed = ledger_file.load(root / new_backport.SOURCES).targets[target]
    assert [line.split()[0] for line in lines.splitlines()] == [*surveyed]
    assert "0.16.0, 0.16.1" in lines
    assert 'Variant("0.' in contents(root)["megatron_patch/backports/upstream/some_new_thing.py"]


def test_the_variant_is_named_after_the_oldest_release_that_has_the_target():
    found = {"none": ["0.9.0"], "aa": ["0.16.0", "0.16.1"], "bb": ["0.14.0", "main"]}
    assert new_backport.first_variant(found) == "0.14"
    assert new_backport.first_variant({"aa": ["main"]}) == FILL


@pytest.mark.parametrize(
    ("id", "target", "complaint"),
    [
        (SERIES[0].id, TARGET, "is a backport already"),
        ("Some-thing", TARGET, "is no id"),
        ("some_thing", TARGET, "is no id"),
        ("thing", TARGET, "is no id"),
        ("../some-thing", TARGET, "is no id"),
        ("some-thing-", TARGET, "is no id"),
        (ID, "megatron.core.thing.Thing.get", "expected 'package.module:Class.method'"),
        (ID, f"{MODULE}:Thing.set", "is in none of: of unknown version in "),
        (ID, "megatron.core.other:get", "is in none of: of unknown version in "),
    ],
)
def test_what_cannot_be_started_leaves_nothing(root, tree, capsys, id, target, complaint):
    before = contents(root)
    assert start(root, id, target, "--megatron", tree) == 2
    assert complaint in capsys.readouterr().err
    assert contents(root) == before


@pytest.mark.parametrize(
    ("text", "complaint"), [(None, "is not a Megatron tree"), ("def f(:\n", "invalid syntax")]
)
def test_a_tree_that_cannot_be_read_is_told(root, tmp_path, capsys, text, complaint):
    if text is not None:
        write(tmp_path / "tree", text)
    (tmp_path / "tree").mkdir(exist_ok=True)
    before = contents(root)
    assert start(root, ID, TARGET, "--megatron", str(tmp_path / "tree")) == 2
    assert complaint in capsys.readouterr().err
    assert contents(root) == before


@pytest.mark.parametrize("path", Stub(ID, new_backport.Target("m", "f"), True, "1", "").files())
def test_a_file_that_exists_stays(root, tree, capsys, path):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("mine")
    before = contents(root)
    assert start(root, ID, TARGET, "--ours", "--megatron", tree) == 2
    assert f"{root / path} exists" in capsys.readouterr().err
    assert contents(root) == before


@pytest.mark.parametrize("number", range(5))
def test_what_cannot_be_written_leaves_nothing(root, tree, capsys, monkeypatch, number):
    before, replace, calls = contents(root), ledger_file.replace, []

    def fail(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) > number:
            raise LedgerError(f"{path} cannot be written")
        replace(path, text)

    monkeypatch.setattr(ledger_file, "replace", fail)
    assert start(root, ID, TARGET, "--ours", "--megatron", tree) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert contents(root) == before


def test_a_series_of_another_form_is_told(root, tree, capsys):
    (root / new_backport.SERIES_FILE).write_text("SERIES = ()\n")
    before = contents(root)
    assert start(root, ID, TARGET, "--megatron", tree) == 2
    assert "expected imports from" in capsys.readouterr().err
    assert contents(root) == before
