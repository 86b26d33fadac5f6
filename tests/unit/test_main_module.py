"""``python -m megatron_patch`` where the working directory has modules of well-known names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_patch

PACKAGE = Path(megatron_patch.__file__).parent
COMMAND = PACKAGE.with_name("megatron_patch_command.py")

# Says that it ran, and then is the module that it hides.
HOSTILE = """
import os, sys
os.write(2, b"ran " + __name__.encode() + b"\\n")
here, path = os.path.dirname(os.path.abspath(__file__)), list(sys.path)
sys.path[:] = [entry for entry in path if os.path.abspath(entry) != here]
del sys.modules[__name__]
sys.modules[__name__] = __import__("importlib").import_module(__name__)
sys.path[:] = path
"""


@pytest.fixture
def hostile(tmp_path):  # type: ignore[no-untyped-def]
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in sys.stdlib_module_names:
        (folder / f"{name}.py").write_text(HOSTILE)
    return folder


def ran(hostile, *arguments: str) -> set[str]:  # type: ignore[no-untyped-def]
    """The modules of the working directory that a start of Python has run."""
    packages = hostile.parent / "packages"
    packages.mkdir(exist_ok=True)
    for source in (PACKAGE, COMMAND):
        if not (packages / source.name).exists():
            (packages / source.name).symlink_to(source)
    (packages / "does_nothing.py").touch()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=hostile,
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return {line.removeprefix("ran ") for line in done.stderr.splitlines() if line[:4] == "ran "}


def test_the_command_runs_nothing_of_the_working_directory(hostile):
    assert ran(hostile, str(COMMAND), "show", "input-position-view-cache") == set()
    if sys.version_info >= (3, 11):
        assert ran(hostile, "-P", "-m", "megatron_patch", "list") == set()
        assert ran(hostile, "-P", "-m", "megatron_patch_command", "list") == set()


@pytest.mark.parametrize(
    "start",
    [
        ("-m", "megatron_patch"),
        ("-Bum", "megatron_patch"),
        ("-mmegatron_patch",),
        ("-m", "megatron_patch_command"),
    ],
    ids=" ".join,
)
def test_python_runs_there_what_it_needs_before_any_code_of_ours(hostile, start):
    of_python = ran(hostile, "-m", "does_nothing")
    assert of_python  # the README promises no more than that
    assert ran(hostile, *start, "show", "input-position-view-cache") == of_python


def test_the_path_of_another_main_module_is_left_alone(hostile):
    program = hostile / "program"
    program.mkdir()
    (program / "__init__.py").write_text("import megatron_patch, sys, os\n")
    (program / "__main__.py").write_text(
        f"import os, sys\nassert os.path.samefile(sys.path[0], {str(hostile)!r}), sys.path\n"
    )
    for name in sys.stdlib_module_names:
        (hostile / f"{name}.py").unlink()
    assert ran(hostile, "-m", "program", "-m", "megatron_patch") == set()
