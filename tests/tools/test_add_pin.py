"""Pins added to the made-up repository of the tests of `refresh_patches`."""

from __future__ import annotations

import pytest

from tools import add_pin, pins
from tools.pins import Pin

from .test_pin_report import FIXED, ORIGINAL, OTHER, WITHOUT
from .test_refresh_patches import TOX_INI, Project


@pytest.fixture
def project(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    made = Project(tmp_path, monkeypatch)
    made.refresh()
    return made


def add(project, *arguments: str) -> int:
    return add_pin.main([*arguments, "--cache", str(project.cache)])


def changes(old: str, new: str) -> tuple[list[str], list[str]]:
    """The lines of `tox.ini` that are gone, and those that are new."""
    before, after = old.splitlines(), new.splitlines()
    return [x for x in before if x not in after], [x for x in after if x not in before]


def test_a_newer_release_of_a_line_takes_the_place_of_its_pin(project, capsys):
    project.index.add("1.1.3", thing=ORIGINAL)
    assert add(project, "1.1.3") == 0
    assert project.read("tox.ini") == TOX_INI.replace("1.1.0", "1.1.3")
    assert not (project.root / "patches" / "1.1.0").exists()
    assert project.read("patches/1.1.3/series") == "0001-sample.patch\n"
    assert project.cells()[1] == "[0001](1.1.3/0001-sample.patch)"
    out = capsys.readouterr().out
    assert "megatron-core 1.1.0 -> 1.1.3\n" in out
    assert "sample: upstreamed -> applicable\n" in out
    assert "1.1.3 is pinned. Now: tox run -f mcore101" in out


def test_a_new_line_gets_lines_like_those_of_the_one_below(project, capsys):
    project.index.add("1.3.0", python=">=3.12", thing=FIXED)
    assert add(project, "1.3.0") == 0
    assert project.read("tox.ini") == (
        TOX_INI.replace("py312-mcore102", "py312-mcore{102,103}")
        .replace(
            "    mcore102: megatron-core==1.2.0\n",
            "    mcore102: megatron-core==1.2.0\n    mcore103: megatron-core==1.3.0\n",
        )
        .replace(
            "    mcore102: EXPECTED_MEGATRON_CORE = 1.2.0\n",
            "    mcore102: EXPECTED_MEGATRON_CORE = 1.2.0\n"
            "    mcore103: EXPECTED_MEGATRON_CORE = 1.3.0\n",
        )
    )
    assert "megatron-core 1.2.0 -> 1.3.0\n" in capsys.readouterr().out
    assert project.cells()[3] == "upstreamed"


def test_a_line_that_is_older_than_all_comes_first(project):
    project.index.add("0.9.0", thing=WITHOUT)
    assert add(project, "0.9.0") == 0
    text = project.read("tox.ini")
    assert "py{310,311}-mcore{009,100,101}\n" in text
    assert [pin.version for pin in pins.read_pins(text)] == ["0.9.0", "1.0.0", "1.1.0", "1.2.0"]


def test_on_the_tox_ini_of_this_repository():
    old = (pins.REPOSITORY / "tox.ini").read_text()
    newest = max(pins.read_pins(old), key=lambda pin: pin.number)
    new = add_pin.with_pin(old, Pin.of("99.1.0"), newest, (3, 10))
    gone, added = changes(old, new)
    number = newest.factor.removeprefix("mcore")
    assert gone  # of env_list
    # With others in braces, or alone, as `py312-mcore019-source` is.
    alone = [line.replace(f"mcore{number}", f"mcore{{{number}}}") for line in gone]
    assert added == [
        *(line.replace(number, f"{number},9901") for line in alone),
        "    mcore9901: megatron-core==99.1.0",
        "    mcore9901: EXPECTED_MEGATRON_CORE = 99.1.0",
    ]


@pytest.mark.parametrize("version", ["1.1.0", "1.3.0"])
def test_a_second_run_changes_nothing(project, version):
    project.index.add("1.3.0", thing=FIXED)
    assert add(project, version) == 0
    before = project.files()
    assert add(project, version) == 0
    assert project.files() == before
    assert project.refresh("--check") == 0


def test_a_drifted_backport_stops_it(project, capsys):
    project.index.add("1.3.0", thing=OTHER)
    before = project.files()
    assert add(project, "1.3.0") == 1
    assert project.files() == before
    captured = capsys.readouterr()
    assert "megatron/core/thing.py:2: megatron.core.thing:Thing.count" in captured.out
    assert "nothing was written: drifted on 1.3.0: sample." in captured.err


def test_unless_it_is_forced(project):
    project.index.add("1.3.0", thing=OTHER)
    assert add(project, "1.3.0", "--force") == 0
    assert project.cells()[3] == "drifted"
    assert project.refresh("--check") == 1


def test_a_dry_run_writes_nothing(project, capsys):
    project.index.add("1.1.3", thing=ORIGINAL)
    before = project.files()
    assert add(project, "1.1.3", "--dry-run") == 0
    assert project.files() == before
    out = capsys.readouterr().out
    assert "-    mcore101: megatron-core==1.1.0\n+    mcore101: megatron-core==1.1.3\n" in out
    assert "would remove patches/1.1.0/series\n" in out
    assert "would write patches/1.1.3/0001-sample.patch\n" in out
    assert "would write tox.ini\n" in out


def test_a_release_that_needs_a_newer_python_than_its_neighbour(project, capsys):
    project.index.add("1.3.0", python=">=3.13", thing=FIXED)
    before = project.files()
    assert add(project, "1.3.0") == 2
    assert project.files() == before
    assert "1.3.0 needs Python 3.13, and tox.ini tests 1.2.0 on py312" in capsys.readouterr().err
    # As the message says: once somebody has written the environment, the rest is done.
    written = TOX_INI.replace("py312-mcore102\n", "py312-mcore102\n    py313-mcore103\n")
    project.write("tox.ini", written)
    assert add(project, "1.3.0") == 0
    gone, added = changes(written, project.read("tox.ini"))
    assert (gone, len(added)) == ([], 2)


@pytest.mark.parametrize(
    ("version", "says"),
    [("9.9.9", "pip cannot get 9.9.9"), ("main", "'main' is not a version"), ("1.1", "'1.1' is")],
)
def test_what_cannot_be_pinned(project, capsys, version, says):
    before = project.files()
    assert add(project, version) == 2
    assert f"add_pin: {says}" in capsys.readouterr().err
    assert project.files() == before


@pytest.mark.parametrize(
    ("version", "near"),
    [("1.1.9", "1.1.0"), ("1.9.0", "1.2.0"), ("0.9.0", "1.0.0"), ("1.0.0", "1.0.0")],
)
def test_the_nearest_pin(version, near):
    assert add_pin.nearest(Pin.of(version), pins.read_pins(TOX_INI)).version == near
