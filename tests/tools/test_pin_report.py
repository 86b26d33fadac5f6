"""The report on small made-up trees and wheels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_patch.edits import Add, Replace
from tests.unit.sample import digest_in, make_patch
from tools import pin_report

from .test_pins import Index

TARGET = "megatron.core.thing:Thing.count"
ORIGINAL = "class Thing:\n    def count(self):\n        return 1\n"
FIXED = ORIGINAL.replace("1", "2")
OTHER = ORIGINAL.replace("1", "3")
WITHOUT = "class Thing:\n    pass\n"


def count(self):  # type: ignore[no-untyped-def]
    return 2


def digest_of(text: str) -> str:
    return digest_in(text)(TARGET)


SERIES = (
    make_patch(
        Add("megatron.core.thing:Thing._helper", count),
        Replace(TARGET, count),
        known=digest_in(ORIGINAL),
        has_it={TARGET: digest_of(FIXED)},
    ),
)


@pytest.fixture
def tree(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    """A function that writes a tree with that name and returns its path."""
    monkeypatch.setattr(pin_report, "SERIES", SERIES)

    def write(name: str, text: str) -> str:
        core = tmp_path / name / "megatron" / "core"
        core.mkdir(parents=True)
        (core / "__init__.py").write_text("raise RuntimeError('imported')\n")
        (core / "thing.py").write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    ("old", "new", "change", "outcome", "status"),
    [
        (ORIGINAL, ORIGINAL, "the same", "as before", 0),
        (ORIGINAL, f"# comment\n{ORIGINAL}", "the same", "as before", 0),
        (ORIGINAL, FIXED, "changed", "now upstreamed", 0),
        (ORIGINAL, WITHOUT, "gone", "no longer applicable", 0),
        (FIXED, WITHOUT, "gone", "no longer applicable", 0),
        (WITHOUT, ORIGINAL, "appeared", "newly applicable", 0),
        (OTHER, ORIGINAL, "changed", "newly applicable", 0),
        (WITHOUT, FIXED, "appeared", "now upstreamed", 0),
        (ORIGINAL, OTHER, "changed", "drifted", 1),
        (OTHER, OTHER, "the same", "drifted", 1),
    ],
)
def test_what_a_move_means(tree, capsys, old, new, change, outcome, status):
    arguments = [tree("old", old), tree("new", new), "--json"]
    assert pin_report.main(arguments) == status
    report = json.loads(capsys.readouterr().out)
    (target,) = report["targets"]
    assert (target["target"], target["change"]) == (TARGET, change)
    (backport,) = report["backports"]
    assert (backport["id"], backport["outcome"]) == ("sample", outcome)


def test_json(tree, capsys):
    old, new = tree("old", ORIGINAL), tree("new", WITHOUT)
    pin_report.main([old, new, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["old"], report["new"]) == (old, new)
    assert report["targets"] == [
        {"target": TARGET, "change": "gone", "old": digest_of(ORIGINAL), "new": None}
    ]
    (backport,) = report["backports"]
    assert list(backport) == ["id", "outcome", "old", "new"]
    assert backport["old"]["verdict"] == "applicable"
    assert backport["new"]["verdict"] == "not_applicable"


def test_text(tree, capsys):
    assert pin_report.main([tree("old", ORIGINAL), tree("new", FIXED)]) == 0
    out = capsys.readouterr().out
    assert "targets: 1 changed, 0 appeared, 0 gone, 0 the same" in out
    assert f"  changed   {TARGET}  {digest_of(ORIGINAL)} -> {digest_of(FIXED)}\n" in out
    assert "backports: 1 now upstreamed\n  sample: applicable -> upstreamed\n" in out


def test_what_drifted_is_shown_with_its_place_below_the_tree(tree, capsys):
    assert pin_report.main([tree("old", ORIGINAL), tree("new", f"\n\n{OTHER}")]) == 1
    out = capsys.readouterr().out
    assert f"      megatron/core/thing.py:4: {TARGET}\n" in out
    assert f"digest {digest_of(OTHER)}, expected {digest_of(ORIGINAL)}" in out


def test_a_target_that_cannot_be_read_is_a_change_and_a_drift(tree, capsys):
    twice = ORIGINAL + ORIGINAL.partition("\n")[2]
    assert pin_report.main([tree("old", ORIGINAL), tree("new", twice), "--json"]) == 1
    (target,) = json.loads(capsys.readouterr().out)["targets"]
    assert target["change"] == "changed"
    assert "is defined 2 times" in target["new"]


def test_a_module_that_does_not_parse(tree, capsys):
    assert pin_report.main([tree("old", ORIGINAL), tree("new", "def (:\n")]) == 1
    assert "sample: applicable -> drifted" in capsys.readouterr().out


def test_released_versions_are_downloaded(tree, monkeypatch, tmp_path, capsys):
    index = Index(monkeypatch)
    index.add("1.0.0", thing=ORIGINAL)
    index.add("1.1.0", thing=FIXED)
    cache = str(tmp_path / "cache")
    assert pin_report.main(["1.0.0", "1.1.0", "--cache", cache]) == 0
    assert "megatron-core 1.0.0 -> 1.1.0\n" in capsys.readouterr().out
    assert pin_report.main(["1.0.0", tree("new", OTHER), "--cache", cache]) == 1
    assert index.asked == ["1.0.0", "1.1.0"]


def test_a_directory_with_the_name_of_a_version(tree, monkeypatch, tmp_path):
    Index(monkeypatch)
    tree("1.0.0", ORIGINAL)
    monkeypatch.chdir(tmp_path)
    assert pin_report.main(["./1.0.0", "./1.0.0"]) == 0


@pytest.mark.parametrize("bad", ["9.9.9", "nowhere", "."])
def test_what_cannot_be_had(tree, monkeypatch, tmp_path, capsys, bad):
    Index(monkeypatch)
    monkeypatch.chdir(tmp_path)
    good = tree("good", ORIGINAL)
    for arguments in ([bad, good], [good, bad]):
        assert pin_report.main([*arguments, "--cache", str(tmp_path / "cache")]) == 2
        assert f"pin_report: {'pip cannot get 9.9.9' if bad == '9.9.9' else bad}" in (
            capsys.readouterr().err
        )


def test_the_tools_run_as_commands_from_anywhere(tmp_path):
    for name in ("pin_report", "refresh_patches", "add_pin"):
        tool = Path(pin_report.__file__).with_name(f"{name}.py")
        done = subprocess.run(
            [sys.executable, "-W", "error", str(tool), "--help"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert "Exit status: 0" in done.stdout
