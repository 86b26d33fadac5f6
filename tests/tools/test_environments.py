"""No test is lost: each file of tests runs in the default command, and each night."""

from __future__ import annotations

import pytest
from packaging.version import Version

from tools import pins

from .environments import ToxIni, expanded, meets

TEXT = (pins.REPOSITORY / "tox.ini").read_text(encoding="utf-8")
TOX_INI = ToxIni(TEXT)
PINS = pins.read_pins(TEXT)
FILES = [
    path.relative_to(pins.REPOSITORY).as_posix()
    for path in sorted((pins.REPOSITORY / "tests").rglob("test_*.py"))
]
AS_SOURCE = [file for file in FILES if file.startswith("tests/source/")]
#: The pin that shows for all how source with the patches in it decodes.
NEWEST = max(PINS, key=lambda pin: Version(pin.version))
DEFAULT, NIGHTLY = TOX_INI.by_default(), TOX_INI.labelled("nightly")


def lost(tox_ini: ToxIni, environments: list[str], files: list[str]) -> list[str]:
    """The files that none of the environments runs."""
    return [f for f in files if not any(tox_ini.runs(name, f) for name in environments)]


def test_each_file_runs_by_default_and_each_night():
    assert len(FILES) > 100
    assert lost(TOX_INI, DEFAULT, FILES) == []
    assert lost(TOX_INI, NIGHTLY, FILES) == []


def of(environments: list[str], factor: str, *, source: bool) -> list[str]:
    return [
        name
        for name in environments
        if factor in name.split("-") and ("source" in name.split("-")) is source
    ]


@pytest.mark.parametrize("pin", PINS, ids=str)
def test_each_pin_has_its_tests_at_run_time_and_as_source(pin):
    each = [
        file for file in FILES if TOX_INI.runs("py312-mcore999", file)
    ]  # a release that is no pin
    assert {*map(folder, each)} >= {"backports", "fuzz", "lifecycle", "matrix", "operation"}
    assert lost(TOX_INI, of(DEFAULT, pin.factor, source=False), each) == []
    assert "tests/source/test_same_code.py" in each
    source = of(DEFAULT, pin.factor, source=True)
    if pin == NEWEST:
        assert lost(TOX_INI, source, AS_SOURCE) == []
    assert lost(TOX_INI, of(NIGHTLY, pin.factor, source=False), FILES) == []
    as_source = [file for file in FILES if folder(file) in ("backports", "source", "upstream")]
    assert lost(TOX_INI, of(NIGHTLY, pin.factor, source=True), as_source) == []


def folder(file: str) -> str:
    return file.split("/")[1]


@pytest.mark.parametrize("python", ["py310", "py311", "py312"])
def test_each_python_has_the_tests_of_the_core(python):
    core = [file for file in FILES if folder(file) == "unit"]
    by_default = [name for name in DEFAULT if name.startswith(python)]
    if python == "py311":  # between two that have them
        core = ["tests/unit/test_fingerprint_versions.py"]
    assert lost(TOX_INI, by_default, core) == []
    nightly = [name for name in NIGHTLY if name.startswith(python)]
    assert lost(TOX_INI, nightly, FILES) == []
    # All of `lifecycle` is on one of them.
    named = {
        word for name in by_default for words in TOX_INI.pytest_arguments(name) for word in words
    }
    assert "tests/lifecycle" in named or len(ORDERS & named) == 4


#: Tests that several files have.
SUITES = [pins.REPOSITORY / "tests" / "lifecycle" / "suite.py"]
ORDERS = {
    word
    for words in TOX_INI.pytest_arguments("py312-mcore018")
    for word in words
    if word.startswith("tests/lifecycle/") and "::" in word
}


@pytest.mark.parametrize("python", ["py312", "py313"])
def test_a_machine_with_one_python_has_what_others_have(python):
    alone = TOX_INI.labelled(python)
    assert {name for name in alone if "mcore" in name and not name.startswith(python)} == set()
    without_python = {name.partition("-")[2] or name for name in DEFAULT}
    assert {name.partition("-")[2] or name for name in alone} == without_python
    assert lost(TOX_INI, alone, FILES) == []
    assert lost(TOX_INI, of(alone, NEWEST.factor, source=True), AS_SOURCE) == []


def test_what_is_named_is_there():
    for name in (*DEFAULT, *NIGHTLY, *TOX_INI.labelled("py312"), *TOX_INI.labelled("py313")):
        for words in TOX_INI.pytest_arguments(name):
            for place in (word for word in words if word.startswith("tests")):
                file, *names = place.split("::")
                assert (pins.REPOSITORY / file).exists(), place
                if names:
                    text = (pins.REPOSITORY / file).read_text(encoding="utf-8")
                    tests = (*SUITES, pins.REPOSITORY / file)
                    assert f"class {names[0]}(" in text, place
                    assert any(f"def {names[1]}(" in t.read_text(encoding="utf-8") for t in tests)


MADE_UP = """\
[tox]
env_list =
    lint
    py{310,311}-a
    py311-b{1,2}
labels =
    nightly = py311-b{1,2}{,-source}-nightly, lint

[tests]
each = \\
    tests/one \\
    tests/two/test_a.py

[testenv]
commands =
    # Not all of them.
    py310: pytest {posargs:tests/one}
    a-!py310,b1: pytest {posargs:{[tests]each} tests/three} -q
    b2-!nightly: pytest tests/four -k some
    nightly: python tests/five/test_a.py
    nightly-!source: pytest {posargs}

[testenv:lint]
commands = ruff check tests/six
"""


def test_what_an_environment_runs():
    made = ToxIni(MADE_UP)
    default, nightly = made.by_default(), made.labelled("nightly")
    assert default == ["lint", "py310-a", "py311-a", "py311-b1", "py311-b2"]
    assert nightly == [
        "py311-b1-nightly",
        "py311-b1-source-nightly",
        "py311-b2-nightly",
        "py311-b2-source-nightly",
        "lint",
    ]
    files = [
        *("tests/one/test_a.py", "tests/two/test_a.py", "tests/two/test_b.py"),
        *("tests/three/deep/test_a.py", "tests/four/test_a.py", "tests/five/test_a.py"),
    ]
    assert lost(made, default, files) == [files[2], *files[4:]]
    assert lost(made, ["py310-a"], files) == files[1:]
    assert lost(made, ["py311-b2"], files) == files
    assert lost(made, ["py311-b2-source-nightly"], files) == files
    assert lost(made, nightly, files) == []


def test_conditions_and_braces():
    assert list(expanded("py3{10,11}-{a,b}")) == ["py310-a", "py310-b", "py311-a", "py311-b"]
    assert list(expanded("a{,-b}")) == ["a", "a-b"]
    found = {c: meets("py311-a", c) for c in ("a", "!a", "a-b", "a-!b", "b,a", "!py311,b", "py31")}
    assert [condition for condition, is_met in found.items() if is_met] == ["a", "a-!b", "b,a"]


def test_an_environment_has_one_python_at_most():
    """Of several Pythons, tox-uv takes the first, and skips the environment if that is missing."""
    named = [line for line in TEXT.splitlines() if line.startswith("base_python")]
    assert named != []
    assert [line for line in named if "," in line] == []
