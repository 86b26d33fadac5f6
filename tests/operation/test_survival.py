"""What would run without us runs with us: odd installations of the real Megatron."""

from __future__ import annotations

import compileall
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_patch.source_tree import SourceTree
from megatron_patch.testing.version import core_version

from ..unit.trees import PACKAGE_PARENT
from .test_command import SHOW, megatron_patch_command, states
from .test_source_patches import copy


def run_script(root: Path, text: str, *options: str, path: Path | None = None, **variables: str):  # type: ignore[no-untyped-def]
    """Run a script in a process, in ``root``, with the modules of ``path`` before all others."""
    script = root / "script.py"
    script.write_text(text)
    search = [*[str(path)] * bool(path), PACKAGE_PARENT, os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *options, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):  # type: ignore[no-untyped-def]
    """A copy of the release with ``.pyc`` files only, except where Megatron needs source."""
    root = copy(tmp_path_factory.mktemp("compiled"))
    assert compileall.compile_dir(root, quiet=2, legacy=True)
    for file in root.rglob("*.py"):
        if "@triton.jit" not in file.read_text():  # Triton wants the source of these
            file.unlink()
    return root


def test_a_megatron_without_source_runs_as_it_is(compiled, tmp_path):
    """Megatron is imported before us here, and after us by the command below."""
    text = SHOW.replace("package =", "import megatron_patch as package\n_ =")
    text += "print(json.dumps(package.megatron_version()))\n"
    done = run_script(tmp_path, text, path=compiled)
    assert done.returncode == 0, done.stderr
    report, version = done.stdout.splitlines()
    assert json.loads(version) == core_version()
    lacking = "does not exist in this release"  # with all of its package, which needs no source
    found = {state for state, why in states(report).values() if not str(why).endswith(lacking)}
    assert found <= {"drifted", "disabled", "pending"}
    state, reason = states(report)["input-position-view-cache"]
    assert (state, reason[-13:]) == ("drifted", "has its sources"[-13:])


def test_the_command_on_a_megatron_without_source(compiled):
    done = megatron_patch_command("status", "--json", path=compiled)
    report = json.loads(done.stdout)
    assert (done.returncode, report["megatron_core"]) == (1, core_version()), done.stderr
    found = {patch["state"] for patch in report["patches"]}
    assert "drifted" in found
    assert "failed" not in found
    for options in (["--megatron", str(compiled)], []):
        done = megatron_patch_command("check", *options, path=compiled)
        assert done.returncode == 3, done.stderr
        assert f"megatron-core of unknown version in {compiled}" in done.stdout
        assert "input-position-view-cache: drifted" in done.stdout
        assert "dynamic_context.pyc: compiled, and its source is not there" in done.stdout
    nowhere = compiled / "nowhere"
    done = megatron_patch_command("export", "--megatron", str(compiled), "--output", str(nowhere))
    assert done.returncode == 3
    assert "did not fit" in done.stderr
    assert not nowhere.exists()


def test_a_tree_of_compiled_modules_is_one(compiled):
    assert SourceTree.at(compiled / "megatron").root == compiled
