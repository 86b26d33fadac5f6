"""``megatron-patch enable`` and ``disable``, in an environment that has the wheel."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from pathlib import Path

import pytest

from megatron_patch import enabling
from megatron_patch.errors import EnablingError

from .trees import ID, IMPORT_ALL, python

#: The state of a patch in a process that has imported Megatron and does not know of us.
SHOW = (
    f"{IMPORT_ALL}; import sys; package = sys.modules.get('_megatron_patch');"
    f"print(package and [str(s.state) for s in package.status() if s.id == '{ID}'][0])"
)


@pytest.fixture
def enabled(installation):  # type: ignore[no-untyped-def]
    """The environment with the patches in every start of its Python."""
    done = installation.command("enable")
    assert (done.returncode, done.stderr) == (0, "")
    yield installation
    (installation.packages / enabling.NAME).unlink(missing_ok=True)


def test_it_is_off_by_default(installation):
    assert installation.run("-c", SHOW, **installation.settings).stdout == "None\n"
    assert not (installation.packages / enabling.NAME).exists()


@pytest.mark.parametrize("options", [[], ["-E"], ["-s"], ["-I"]], ids=str)
def test_every_start_is_patched_but_one_without_site_packages(enabled, options):
    """The environment has the settings only, which -E and -I do not hide from us."""
    done = enabled.run(*options, "-c", SHOW, **enabled.settings)
    assert (done.stdout, done.stderr) == ("applied\n", "")
    megatron = f"import sys; sys.path.append({str(enabled.packages)!r}); {SHOW}"
    assert enabled.run(*options, "-S", "-c", megatron, **enabled.settings).stdout == "None\n"


def test_another_pythonpath_hides_nothing(enabled, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('theirs')\n")
    done = enabled.run("-c", SHOW, PYTHONPATH=str(tmp_path), **enabled.settings)
    assert (done.stdout, done.stderr) == ("theirs\napplied\n", "")


def test_a_child_with_an_empty_environment_is_patched(enabled):
    code = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-c', {SHOW!r}], env={{}})"
    )
    done = enabled.run("-W", "ignore", "-c", code)
    assert done.stdout == "drifted\n"  # since no setting accepts the digest of the stand-in


def test_the_settings_count(enabled):
    assert enabled.run("-c", SHOW, MEGATRON_PATCH="none").stdout == "disabled\n"
    wrong = enabled.run("-c", SHOW, MEGATRON_PATCH="typo")
    assert (wrong.returncode, wrong.stdout) == (0, "None\n")
    assert wrong.stderr.startswith("megatron_patch: not active in process ")
    strict = enabled.run("-c", SHOW, MEGATRON_PATCH="typo", MEGATRON_PATCH_STRICT="1")
    assert strict.returncode == 1
    assert "unknown name 'typo'" in strict.stderr


def test_run_and_enable_together_are_one(enabled):
    count = "import sys; print(sum(type(f).__name__ == '_BeforeMegatron' for f in sys.meta_path))"
    start = ("run", "--", str(enabled.python), "-c", f"{count}; {SHOW}")
    done = enabled.command(*start, **enabled.settings)
    assert (done.stdout, done.stderr) == ("1\napplied\n", "")


def test_an_import_of_ours_is_the_same_package(enabled):
    code = f"import megatron_patch; {IMPORT_ALL}; import _megatron_patch as other; print(other is megatron_patch)"  # fmt: skip # noqa: E501
    assert enabled.run("-c", code, **enabled.settings).stdout == "True\n"


def test_a_start_imports_next_to_nothing_for_it(enabled):
    code = "import sys; print(*sorted(sys.modules))"
    with_it = set(enabled.run("-c", code).stdout.split())
    assert enabled.command("disable").returncode == 0
    without = set(enabled.run("-c", code).stdout.split())
    assert with_it >= without
    small = {"_frozen_importlib", "importlib", "importlib._bootstrap", "warnings", "_warnings"}
    small |= {"importlib._bootstrap_external", "importlib.machinery"}
    assert with_it - without <= small


def test_a_start_takes_less_than_ten_milliseconds_more(enabled):
    file = enabled.packages / enabling.NAME
    aside = file.with_suffix(".aside")

    def fastest() -> float:
        times = []
        for _ in range(15):
            begin = time.perf_counter()
            enabled.run("-c", "")
            times.append(time.perf_counter() - begin)
        return min(times) * 0.5 + statistics.median(times) * 0.5

    costs = []
    while len(costs) < 3 and min(costs, default=1) >= 0.010:
        with_it = fastest()
        file.rename(aside)
        costs.append(with_it - fastest())
        aside.rename(file)
    assert min(costs) < 0.010


def test_enable_and_disable_are_idempotent_and_status_lists_them(installation):
    file = installation.packages / enabling.NAME

    def listed() -> tuple[str, str | None]:
        text = installation.command("status").stdout.splitlines()[2]
        return text, json.loads(installation.command("status", "--json").stdout)["enabled"]

    before = set(installation.packages.iterdir())
    assert listed() == ("each start of this Python: not patched", None)
    assert installation.command("disable").stdout == f"not enabled: there is no {file}\n"
    assert installation.command("enable").stdout == f"enabled by {file}\n"
    text = file.read_text("ascii")
    assert listed() == (f"each start of this Python: patched, by {file}", f"patched, by {file}")
    assert installation.command("enable").stdout == f"already enabled by {file}\n"
    assert file.read_text("ascii") == text
    assert installation.command("disable").stdout == f"removed {file}\n"
    assert set(installation.packages.iterdir()) == before


def test_after_the_package_was_uninstalled_a_start_is_as_ever(enabled):
    done = enabled.run("-m", "pip", "uninstall", "--quiet", "--yes", "megatron-patch")
    assert done.returncode == 0, done.stderr
    try:
        assert (enabled.packages / enabling.NAME).exists()
        done = enabled.run("-c", SHOW, **enabled.settings)
        assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")
    finally:
        enabled.install()
    assert enabled.run("-c", SHOW, **enabled.settings).stdout == "applied\n"


@pytest.mark.parametrize("kind", ["text", "link", "directory"])
def test_a_file_of_somebody_else_is_left_alone(installation, tmp_path, kind):
    file = installation.packages / enabling.NAME
    if kind == "text":
        file.write_text("# mine\n")
    elif kind == "link":
        (tmp_path / "mine.pth").write_text(enabling._text(Path("gone")))
        file.symlink_to(tmp_path / "mine.pth")
    else:
        file.mkdir()
    try:
        for name in ("enable", "disable"):
            done = installation.command(name)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith(f"megatron-patch {name}: {file} ")
        assert f"not known: {file} " in installation.command("status").stdout
        assert os.path.lexists(file)
        assert not file.is_file() or file.read_text() in ("# mine\n", enabling._text(Path("gone")))
    finally:
        shutil.rmtree(file) if kind == "directory" else file.unlink()


def test_site_packages_that_cannot_be_written(monkeypatch):
    monkeypatch.setattr(
        enabling, "folder", lambda: Path("/proc/self")
    )  # nobody can write there, not even root
    with pytest.raises(EnablingError, match=r"megatron-patch.pth cannot be written: .*; enable"):
        enabling.enable()


def test_a_python_without_site_packages(monkeypatch):
    monkeypatch.setattr("site.getsitepackages", lambda: ["/elsewhere"])
    with pytest.raises(EnablingError, match="not a directory where this Python looks"):
        enabling.enable()


@pytest.fixture
def site_packages(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(enabling, "folder", lambda: folder)
    return folder


@pytest.mark.parametrize("name", ["plain", "it's", 'a "quote"', "both ' and \"", "ünïcode", "a\\n"])
def test_a_package_in_a_directory_of_any_name(site_packages, tmp_path, monkeypatch, name):
    package = tmp_path / name / "megatron_patch"
    shutil.copytree(enabling.SITE.parent, package)
    monkeypatch.setattr(enabling, "SITE", package / "_site")
    assert enabling.enable() == (site_packages / enabling.NAME, True)
    assert enabling.enabled() == package / "_site"
    code = "import site, sys; site.addsitedir(sys.argv[1]); import _megatron_patch as found; print(ascii(found.__file__))"  # fmt: skip # noqa: E501
    done = python("-c", code, str(site_packages), PYTHONPATH="", PYTHONUTF8="1")
    assert (done.stdout, done.stderr) == (f"{str(package / '__init__.py')!a}\n", "")
    shutil.rmtree(package)
    done = python("-c", "import site, sys; site.addsitedir(sys.argv[1])", str(site_packages))
    assert (done.returncode, done.stderr) == (0, "")


def test_enabling_another_copy_of_the_package_takes_the_place_of_the_first(
    site_packages, monkeypatch
):
    enabling.enable()
    monkeypatch.setattr(enabling, "SITE", Path("/other/megatron_patch/_site"))
    assert enabling.enable() == (site_packages / enabling.NAME, True)
    assert enabling.enabled() == Path("/other/megatron_patch/_site")
    assert [entry.name for entry in site_packages.iterdir()] == [enabling.NAME]


def test_a_damaged_file_is_told_of_and_written_anew(site_packages):
    file, _ = enabling.enable()
    text = file.read_text()
    file.write_text(text[:-20])
    with pytest.raises(EnablingError, match=r"is damaged; .* writes it anew"):
        enabling.enabled()
    enabling.enable()
    assert file.read_text() == text
