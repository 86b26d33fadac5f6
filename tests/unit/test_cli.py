"""``python -m megatron_patch status`` in processes of its own, with stand-in Megatron trees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_patch.backports.input_position_view_cache import GETTER

PACKAGE_PARENT = str(Path(__file__).parents[2])
FIELDS = ["id", "kind", "state", "reason", "upstream_pr", "fixed_in"]


def run(
    *arguments: str, path: Path | None = None, isolate: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command without site-packages, so that only what ``path`` holds is installed."""
    search = os.pathsep.join([str(path)] * bool(path) + [PACKAGE_PARENT])
    return subprocess.run(
        [sys.executable, *["-S"] * isolate, "-m", "megatron_patch", *arguments],
        env={**os.environ, "PYTHONPATH": search, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A Megatron of packages only; ``dynamic_context`` is for the test to write."""
    package = tmp_path
    for part in ("megatron", "core", "inference", "contexts"):
        package /= part
        package.mkdir()
        if part != "megatron":
            (package / "__init__.py").write_text("")
    return tmp_path


def context(tree: Path) -> Path:
    return tree / "megatron" / "core" / "inference" / "contexts" / "dynamic_context.py"


def test_json_has_these_fields(tree):
    context(tree).write_text("class DynamicInferenceContext:\n    pass\n")
    done = run("status", "--json", path=tree)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert list(report) == ["megatron_core", "python", "torch", "location", "patches"]
    assert (report["megatron_core"], report["torch"]) == (None, None)
    (patch,) = report["patches"]
    assert list(patch) == FIELDS
    assert patch["state"] == "not_applicable"
    assert (patch["upstream_pr"], patch["fixed_in"]) == (4634, "0.18.0")


def test_text_says_where_it_runs_from(tree):
    context(tree).write_text("class DynamicInferenceContext:\n    pass\n")
    done = run("status", path=tree)
    assert f"megatron_patch from {Path(PACKAGE_PARENT, 'megatron_patch')}" in done.stdout
    assert "input-position-view-cache: not_applicable" in done.stdout


def test_disabled_is_a_healthy_state(tree):
    context(tree).write_text("class DynamicInferenceContext:\n    pass\n")
    done = run("status", path=tree, MEGATRON_PATCH="none")
    assert done.returncode == 0
    assert "input-position-view-cache: disabled" in done.stdout


def test_megatron_is_not_installed():
    done = run("status")
    assert done.returncode == 1
    assert f"{GETTER} cannot be patched" in done.stdout
    assert "pip install megatron-core" in done.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import torch\n", "No module named 'torch': pip install torch"),
        ("raise OSError('disk on fire')\n", "raised OSError: disk on fire"),
        ("def broken(:\n", "raised SyntaxError"),
    ],
)
def test_a_target_module_that_cannot_be_imported(tree, text, says):
    context(tree).write_text(text)
    done = run("status", path=tree)
    assert done.returncode == 1
    assert "input-position-view-cache: failed" in done.stdout
    assert f"{GETTER} cannot be patched" in done.stdout
    assert says in done.stdout


def test_drifted_source(tree):
    context(tree).write_text(
        "class DynamicInferenceContext:\n"
        "    def current_input_and_position_ids(self):\n"
        "        return None\n"
    )
    done = run("status", path=tree)
    assert done.returncode == 1
    assert "input-position-view-cache: drifted" in done.stdout
    assert GETTER in done.stdout
    assert "expected" in done.stdout
    strict = run("status", path=tree, MEGATRON_PATCH_STRICT="1")
    assert strict.returncode == 1
    assert "input-position-view-cache: drifted" in strict.stdout


def test_no_command_is_a_usage_error():
    done = run()
    assert done.returncode == 2
    assert "status" in done.stderr
