"""Pins and their source, from made-up wheels: nothing is downloaded here."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from megatron_patch.model import NEWEST_RELEASE
from tools import pins
from tools.pins import Pin, PinError

TOX_INI = pins.REPOSITORY / "tox.ini"


class Index:
    """Stands in for pip: made-up wheels, by version, and the versions that were asked for."""

    def __init__(self, monkeypatch):  # type: ignore[no-untyped-def]
        self.files: dict[str, dict[str, str]] = {}
        self.python: dict[str, str] = {}
        self.asked: list[str] = []
        monkeypatch.setattr(pins, "download", self.download)

    def add(self, version: str, python: str = ">=3.10", **modules: str) -> None:
        """A release with these modules in `megatron.core`."""
        self.files[version] = {f"megatron/core/{m}.py": text for m, text in modules.items()}
        self.python[version] = python

    def download(self, version: str, directory: Path) -> None:
        self.asked.append(version)
        if version not in self.files:
            raise PinError(f"pip cannot get {version}")
        with zipfile.ZipFile(directory / f"megatron_core-{version}-cp313-x.whl", "w") as archive:
            archive.writestr("megatron/core/__init__.py", "raise RuntimeError('imported')\n")
            for name, text in self.files[version].items():
                archive.writestr(name, text)
            archive.writestr("megatron/core/helpers.so", b"\0")
            archive.writestr("another/core/module.py", "")
            archive.writestr(
                f"megatron_core-{version}.dist-info/METADATA",
                f"Name: megatron-core\nRequires-Python: {self.python[version]}\n\nThe text.\n",
            )


@pytest.fixture
def index(monkeypatch):  # type: ignore[no-untyped-def]
    return Index(monkeypatch)


def test_the_newest_release_that_the_series_knows_is_that_of_the_newest_pin():
    newest = max(pins.read_pins(TOX_INI.read_text()), key=lambda pin: pin.number)
    assert newest.version == NEWEST_RELEASE


def test_pins_are_the_factor_lines_of_deps():
    text = (
        "[testenv]\ndeps =\n    py312: torch==2.14.1\n    mcore019: megatron-core==0.19.2\n"
        "    mcore100: megatron-core==1.0.0rc1\n    # mcore020: megatron-core==0.20.0\n"
        "[testenv:demo]\ndeps = megatron-core==0.16.1\n"
    )
    assert pins.read_pins(text) == [Pin("mcore019", "0.19.2"), Pin("mcore100", "1.0.0rc1")]
    with pytest.raises(PinError, match="no line like"):
        pins.read_pins("[testenv]\n")


def test_each_pin_of_this_repository_has_its_factor_and_what_its_tests_expect():
    text = TOX_INI.read_text()
    for pin in pins.read_pins(text):
        assert pin == Pin.of(pin.version)
        assert f"    {pin.factor}: EXPECTED_MEGATRON_CORE = {pin.version}\n" in text


@pytest.mark.parametrize(
    ("version", "factor"),
    [("0.14.0", "mcore014"), ("1.2.3", "mcore102"), ("0.16.0rc0.dev1", "mcore016")],
)
def test_the_factor_of_a_version(version, factor):
    assert Pin.of(version) == Pin(factor, version)


@pytest.mark.parametrize("version", ["", "0.19", "v0.19.2", "0.19.x", "../0.19.2", "*", "0.19.2 "])
def test_what_is_no_version(version, tmp_path):
    with pytest.raises(PinError, match="is not a version of megatron-core"):
        pins.wheel(version, tmp_path)


def test_the_cache_is_where_the_user_has_caches(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert pins.default_cache() == Path("/elsewhere/megatron-patch/wheels")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert pins.default_cache() == Path("/home/me/.cache/megatron-patch/wheels")


def test_a_wheel_is_downloaded_once(index, tmp_path):
    index.add("1.0.0")
    cache = tmp_path / "new" / "cache"
    assert pins.wheel("1.0.0", cache) == pins.wheel("1.0.0", cache)
    assert index.asked == ["1.0.0"]
    assert [path.name for path in cache.iterdir()] == ["megatron_core-1.0.0-cp313-x.whl"]


def test_a_version_that_starts_like_another_is_not_taken_for_it(index, tmp_path):
    index.add("1.0.0rc1")
    index.add("1.0.0")
    pins.wheel("1.0.0rc1", tmp_path)
    assert pins.wheel("1.0.0", tmp_path).name == "megatron_core-1.0.0-cp313-x.whl"


def test_a_download_that_fails_leaves_nothing(index, tmp_path):
    with pytest.raises(PinError, match=r"cannot get 9\.9\.9"):
        pins.wheel("9.9.9", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pip_that_downloads_something_else(monkeypatch, tmp_path):
    monkeypatch.setattr(pins, "download", lambda version, directory: None)
    with pytest.raises(PinError, match=r"no megatron_core-1\.0\.0-\*\.whl; put that wheel into"):
        pins.wheel("1.0.0", tmp_path)


def test_only_the_python_source_is_unpacked_and_only_for_a_while(index, tmp_path):
    index.add("1.0.0", thing="X = 1\n")
    with pins.source("1.0.0", tmp_path) as tree:
        root = tree.root
        assert tree.read("megatron.core.thing") == "X = 1\n"
        files = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    assert files == {"megatron/core/__init__.py", "megatron/core/thing.py"}
    assert not root.exists()


def test_a_file_that_is_no_wheel(tmp_path):
    (tmp_path / "megatron_core-1.0.0-x.whl").write_text("<html>")
    with pytest.raises(PinError, match="is not a wheel"), pins.source("1.0.0", tmp_path):
        pass


@pytest.mark.parametrize(
    ("requires", "oldest"), [(">=3.12", (3, 12)), ("<4,>= 3.10", (3, 10)), ("", (3, 0))]
)
def test_the_oldest_python_of_a_release(index, tmp_path, requires, oldest):
    index.add("1.0.0", python=requires)
    assert pins.oldest_python("1.0.0", tmp_path) == oldest


class Pip:
    """Stands in for pip: it succeeds for the given Pythons, otherwise it fails with `error`."""

    def __init__(self, monkeypatch, *pythons: str, error: str = "ERROR: No matching distribution"):  # type: ignore[no-untyped-def]
        self.pythons = pythons
        self.error = error
        self.commands: list[list[str]] = []
        monkeypatch.setattr(subprocess, "run", self.run)

    def run(self, command, **options):  # type: ignore[no-untyped-def]
        self.commands.append(command)
        (python,) = (a.split("=")[1] for a in command if a.startswith("--python-version="))
        if python in self.pythons:
            return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.CompletedProcess(command, 1, "", f"{self.error} for {python}\n")


def test_pip_is_asked_for_a_wheel_of_any_platform_and_python(monkeypatch, tmp_path):
    pip = Pip(monkeypatch, "3.13", "3.12")
    pins.download("1.0.0", tmp_path)
    (command,) = pip.commands
    assert command[1:3] == ["-m", "pip"]
    assert {"download", "--no-deps", "--only-binary=:all:", "megatron-core==1.0.0"} < set(command)
    assert f"--dest={tmp_path}" in command
    assert "--platform=manylinux_2_28_x86_64" in command
    # Where pip looks depends on its configuration.
    assert not any("index" in word or "://" in word for word in command)


def test_older_pythons_are_asked_for_only_for_want_of_a_wheel(monkeypatch, tmp_path):
    pip = Pip(monkeypatch, "3.11")
    pins.download("1.0.0", tmp_path)
    assert len(pip.commands) == 3
    pip = Pip(monkeypatch, error="No module named pip")
    with pytest.raises(PinError, match="No module named pip"):
        pins.download("1.0.0", tmp_path)
    assert len(pip.commands) == 1


def test_the_error_is_that_for_the_newest_python(monkeypatch, tmp_path):
    Pip(monkeypatch)
    with pytest.raises(PinError, match=r"No matching distribution for 3\.13\n.*--cache"):
        pins.download("1.0.0", tmp_path)
