"""``export`` and ``apply`` where not all patches fit, and the ids that commands take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_patch import in_place
from megatron_patch.cli import main
from megatron_patch.commands import check, source
from megatron_patch.edits import Replace, Substitute
from megatron_patch.errors import TreeError
from megatron_patch.source_edits import source_patches

from .sample import digest_in, make_patch
from .source_trees import MODULE, PATH, git, repository, write

TEXT = """\
class Thing:
    def one(self):
        return 1

    def two(self):
        return 2
"""
OTHER = "megatron.core.other"
OTHER_PATH = "megatron/core/other.py"


def one(self: object) -> int:
    return 11


#: `whole` replaces a method, whatever its source is; `two` looks for a number in both files.
SERIES = (
    make_patch(Replace(f"{MODULE}:Thing.one", one), known=digest_in(TEXT), id="whole"),
    make_patch(
        Substitute(f"{OTHER}:Thing.two", "2", "20"),
        Substitute(f"{MODULE}:Thing.two", "2", "20"),
        known=digest_in(TEXT),
        id="both",
    ),
    make_patch(Substitute(f"{OTHER}:Thing.one", "1", "10"), known=digest_in(TEXT), id="other"),
    make_patch(
        Substitute(f"{OTHER}:Thing.two", "2", "4"), known=digest_in(TEXT), id="opt"
    )._replace(default=False),
)


@pytest.fixture(autouse=True)
def _series(monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(source, "SERIES", SERIES)
    monkeypatch.setattr(check, "SERIES", SERIES)
    monkeypatch.setattr(in_place.os, "fsync", lambda handle: None)
    for name in ("MEGATRON_PATCH", "MEGATRON_PATCH_ACCEPT"):
        monkeypatch.delenv(name, raising=False)


def fork(root: Path, text: str = TEXT, other: str = TEXT) -> Path:
    write(root, other, OTHER)
    return write(root, text).root


def exported(root: Path, tmp_path: Path, *arguments: str) -> tuple[int, list[str]]:
    output = tmp_path / "series"
    status = main(["export", "--megatron", str(root), "--output", str(output), *arguments])
    names = (output / "series").read_text().split() if output.exists() else []
    return status, [name.removesuffix(".patch") for name in names]


ONE_DRIFTED = TEXT.replace("return 1", "return 1 + 0")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "0001-whole 0002-both 0003-other"),
        (["whole"], "0001-whole"),
        (["--only", "whole", "--only", "other"], "0001-whole 0003-other"),
        (["--only", "whole", "other"], "0001-whole 0003-other"),
        (["whole,other"], "0001-whole 0003-other"),
        (["-whole"], "0002-both 0003-other"),
        (["-whole", "-other"], "0002-both"),
        (["--only", "-whole"], "0002-both 0003-other"),
        (["--only=-whole"], "0002-both 0003-other"),
        (["whole", "opt"], "0001-whole 0004-opt"),
        (["outside", "-whole"], "0002-both 0003-other"),
        (["none"], ""),
    ],
)
def test_ids_are_those_of_the_variable(tmp_path, arguments, expected):
    assert exported(fork(tmp_path / "fork"), tmp_path, *arguments) == (0, expected.split())


def test_ids_may_stand_anywhere(tmp_path):
    root = fork(tmp_path / "fork")
    output = str(tmp_path / "series")
    arguments = ["whole", "--megatron", str(root), "opt", "--output", output, "-whole"]
    assert main(["export", *arguments]) == 0
    assert (tmp_path / "series" / "series").read_text() == "0004-opt.patch\n"


@pytest.mark.parametrize("command", ["check", "export", "apply"])
def test_an_unknown_id_is_an_error(tmp_path, capsys, command):
    root = fork(tmp_path / "fork")
    options = ["--output", str(tmp_path / "series")] * (command == "export")
    assert main([command, "--megatron", str(root), *options, "-nothing"]) == 2
    assert "unknown name '-nothing'; expected a comma-separated list of" in capsys.readouterr().err
    assert not (tmp_path / "series").exists()


def test_check_takes_ids(tmp_path, capsys):
    here = ["--json", "--megatron", str(fork(tmp_path, ONE_DRIFTED))]

    def found(*arguments: str) -> tuple[int, list[str]]:
        status = main(["check", *here, *arguments])
        return status, [p["id"] for p in json.loads(capsys.readouterr().out)["patches"]]

    assert found() == (3, ["whole", "both", "other", "opt"])
    assert found("both", "opt") == (0, ["both", "opt"])
    assert found("-both") == (3, ["whole", "other"])


def test_export_skips_what_does_not_fit_and_says_so(tmp_path, capsys):
    root = fork(tmp_path / "fork", ONE_DRIFTED)
    assert exported(root, tmp_path) == (3, ["0002-both", "0003-other"])
    error = capsys.readouterr().err
    assert f"skipped whole: drifted (unknown source: {MODULE}:Thing.one" in error
    assert "1 of the selected patches did not fit" in error
    assert "check --diff whole" in error
    repository(root)
    git("am", "-q", *map(str, sorted((tmp_path / "series").glob("*.patch"))), cwd=root)
    assert (root / PATH).read_text() == ONE_DRIFTED.replace("2", "20")


def test_an_export_of_nothing_leaves_an_earlier_one(tmp_path):
    exported(fork(tmp_path / "fork"), tmp_path)
    status, names = exported(fork(tmp_path / "fork", ONE_DRIFTED), tmp_path, "whole")
    assert (status, len(names)) == (3, 3)
    assert len(list((tmp_path / "series").iterdir())) == 4


def test_what_drifted_and_is_not_selected_does_not_count(tmp_path):
    root = fork(tmp_path / "fork", ONE_DRIFTED)
    assert exported(root, tmp_path, "-whole") == (0, ["0002-both", "0003-other"])


def test_accepted_source_is_known(tmp_path, monkeypatch, capsys):
    root = fork(tmp_path / "fork", ONE_DRIFTED)
    digest = digest_in(ONE_DRIFTED)(f"{MODULE}:Thing.one")
    monkeypatch.setenv("MEGATRON_PATCH_ACCEPT", f"whole@{digest}")
    assert exported(root, tmp_path) == (0, ["0001-whole", "0002-both", "0003-other"])
    monkeypatch.setenv("MEGATRON_PATCH_ACCEPT", f"whole@{'0' * 16}")
    before = (root / PATH).read_text()
    assert main(["apply", "--megatron", str(root)]) == 2
    assert "is not the source of any target" in capsys.readouterr().err
    assert (root / PATH).read_text() == before


def test_allow_drift_still_edits_what_fits(tmp_path):
    root = fork(tmp_path / "fork", ONE_DRIFTED)
    found = exported(root, tmp_path, "--allow-drift")
    assert found == (0, ["0001-whole", "0002-both", "0003-other"])


def test_a_patch_of_two_files_is_skipped_in_both(tmp_path, capsys):
    """Its first edit fits, its second does not: nothing of it is in either file."""
    text = TEXT.replace("return 2", "return 3")
    root = fork(tmp_path, text)
    for options in ([], ["--allow-drift"]):
        assert main(["apply", "--megatron", str(root), *options]) == 3
        assert (root / PATH).read_text() == text.replace("return 1", "return 11")
        assert (root / OTHER_PATH).read_text() == TEXT.replace("1", "10")
        assert main(["revert", "--megatron", str(root)]) == 0
        assert ((root / PATH).read_text(), (root / OTHER_PATH).read_text()) == (text, TEXT)


def test_apply_says_in_advance_what_it_would_skip(tmp_path, capsys):
    root = fork(tmp_path, ONE_DRIFTED)
    assert main(["apply", "--megatron", str(root), "--dry-run"]) == 3
    foreseen = capsys.readouterr()
    assert (root / OTHER_PATH).read_text() == TEXT
    assert main(["apply", "--megatron", str(root)]) == 3
    done = capsys.readouterr()
    assert done.out == foreseen.out.replace("would change", "changed")
    assert done.err == foreseen.err
    assert (root / PATH).read_text() == ONE_DRIFTED.replace("2", "20")


def test_what_was_skipped_can_be_applied_later(tmp_path, monkeypatch):
    root = fork(tmp_path, ONE_DRIFTED)
    assert main(["apply", "--megatron", str(root)]) == 3
    digest = digest_in(ONE_DRIFTED)(f"{MODULE}:Thing.one")
    monkeypatch.setenv("MEGATRON_PATCH_ACCEPT", f"whole@{digest}")
    assert main(["apply", "--megatron", str(root)]) == 0
    assert "return 11" in (root / PATH).read_text()
    assert main(["revert", "--megatron", str(root)]) == 0
    assert (root / PATH).read_text() == ONE_DRIFTED


def test_a_tree_that_is_not_clean_is_left_alone(tmp_path, capsys):
    root = fork(tmp_path, ONE_DRIFTED)
    repository(root)
    fork(tmp_path, ONE_DRIFTED + "\n# more\n")
    assert main(["apply", "--megatron", str(root)]) == 1
    assert "not committed" in capsys.readouterr().err
    assert (root / OTHER_PATH).read_text() == TEXT


def test_a_file_that_changes_meanwhile_is_left_alone(tmp_path):
    tree = write(tmp_path, TEXT)
    made, _ = source_patches(tree, SERIES, ["whole"])
    write(tmp_path, TEXT + "# theirs\n")
    with pytest.raises(TreeError, match="changed while it was read"):
        in_place.apply(tree, made)
    assert (tmp_path / PATH).read_text() == TEXT + "# theirs\n"
    assert not (tmp_path / in_place.STATE).exists()


def test_help_says_the_exit_status(capsys):
    for command in ("export", "apply"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert "3 when some of the patches did not fit" in said
        assert "MEGATRON_PATCH_ACCEPT" in said
