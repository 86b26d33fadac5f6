"""Some of the patches that were applied are taken back, and the files are what the others make."""

from __future__ import annotations

import itertools
import os

import pytest

from megatron_patch import cli, in_place, partly, tree_record
from megatron_patch.commands import source
from megatron_patch.edits import Substitute
from megatron_patch.errors import TreeError
from megatron_patch.tree_files import TreeFiles

from .sample import digest_in, make_patch
from .source_trees import MODULE, PATH, made, write
from .test_in_place import OTHER, OTHER_PATH, SERIES, TEXT

IDS = [patch.id for patch in SERIES]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(source, "SERIES", SERIES)
    for name in ("MEGATRON_PATCH", "MEGATRON_PATCH_ACCEPT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tree(tmp_path):  # type: ignore[no-untyped-def]
    """A tree with the two modules, the second with Windows' line ends."""
    write(tmp_path, TEXT.replace("\n", "\r\n").encode(), OTHER)
    return write(tmp_path, TEXT)


def contents(tree) -> list[bytes]:  # type: ignore[no-untyped-def]
    return [(tree.root / path).read_bytes() for path in (PATH, OTHER_PATH)]


@pytest.mark.parametrize("taken", [c for n in (1, 2, 3) for c in itertools.combinations(IDS, n)])
def test_what_is_left_is_what_the_others_make(tree, tmp_path_factory, taken):
    before = contents(tree)
    other = tmp_path_factory.mktemp("other")
    write(other, TEXT.replace("\n", "\r\n").encode(), OTHER)
    alone = write(other, TEXT)
    left = [id for id in IDS if id not in taken]
    in_place.apply(alone, made(alone, SERIES, left))
    in_place.apply(tree, made(tree, SERIES))
    partly.revert(tree, SERIES, taken, {})
    assert contents(tree) == contents(alone)
    assert (tree.root / in_place.STATE).exists() is bool(left)
    if left:
        in_place.revert(tree)
    assert contents(tree) == before


def test_the_rest_can_be_applied_again_and_taken_back(tree):
    before = contents(tree)
    in_place.apply(tree, made(tree, SERIES))
    after = contents(tree)
    assert len(partly.revert(tree, SERIES, ["ten"], {})) == 2
    assert partly.revert(tree, SERIES, ["ten"], {}) == []
    in_place.apply(tree, made(tree, SERIES))
    assert contents(tree) == after
    in_place.revert(tree)
    assert contents(tree) == before


def test_what_cannot_be_told_is_left_alone(tree):
    """A patch that no series knows any more is in a file."""
    more = make_patch(
        Substitute(f"{MODULE}:Thing.two", "2", "22"), known=digest_in(TEXT), id="more"
    )
    in_place.apply(tree, made(tree, [*SERIES[:1], more]))
    after = contents(tree)
    with pytest.raises(TreeError, match="cannot be told with certainty"):
        partly.revert(tree, SERIES, ["ten"], {})
    assert contents(tree) == after


def test_a_file_that_was_changed_since_is_left_alone(tree):
    in_place.apply(tree, made(tree, SERIES))
    (tree.root / PATH).write_text("x = 1\n")
    with pytest.raises(TreeError, match="was changed after"):
        partly.revert(tree, SERIES, ["other"], {})
    assert (tree.root / PATH).read_text() == "x = 1\n"


def test_a_write_that_fails_leaves_all_patches(tree, monkeypatch):
    in_place.apply(tree, made(tree, SERIES))
    after = contents(tree)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(TreeFiles, "exchange", full)
        with pytest.raises(OSError, match="No space"):
            partly.revert(tree, SERIES, ["ten"], {})
    assert contents(tree) == after
    partly.revert(tree, SERIES, IDS, {})
    assert contents(tree) == [TEXT.encode(), TEXT.replace("\n", "\r\n").encode()]


def test_a_record_that_cannot_be_written_leaves_all_patches(tree, monkeypatch):
    """It fails when the first of two files has been exchanged already."""
    in_place.apply(tree, made(tree, SERIES))
    after = contents(tree)
    save, calls = tree_record.save, itertools.count()

    def full(*arguments: object) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        save(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as context:
        context.setattr(tree_record, "save", full)
        with pytest.raises(OSError, match="No space"):
            partly.revert(tree, SERIES, ["twenty"], {})
    assert contents(tree) == after
    partly.revert(tree, SERIES, ["twenty"], {})
    assert contents(tree)[1] == after[1]
    assert contents(tree)[0] != after[0]


def test_the_command_takes_ids(tree, capsys):
    here = ["--megatron", str(tree.root)]
    assert cli.main(["revert", *here, "ten"]) == 1
    assert "nothing was applied" in capsys.readouterr().err
    assert cli.main(["apply", *here]) == 0
    capsys.readouterr()
    assert cli.main(["revert", *here, "nothing"]) == 2
    assert cli.main(["revert", *here, "-ten"]) == 0
    said = capsys.readouterr().out
    assert said == f"changed {tree.root / PATH}\nchanged {tree.root / OTHER_PATH}\n"
    assert contents(tree)[0] == TEXT.replace("1", "10").encode()
    assert cli.main(["revert", *here, "other"]) == 0
    assert "none of these is applied" in capsys.readouterr().out
    assert cli.main(["revert", *here]) == 0
    assert contents(tree)[0] == TEXT.encode()
