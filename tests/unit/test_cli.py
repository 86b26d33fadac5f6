"""The command line in processes of its own, with stand-in Megatron trees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_patch.backports import SERIES
from megatron_patch.backports.upstream.input_position_view_cache import GETTER
from megatron_patch.model import Kind

from .trees import PACKAGE_PARENT, write_tree
from .trees import command as run

FIELDS = ["id", "kind", "state", "reason", "upstream_pr", "fixed_in"]
DRIFTED = """
class DynamicInferenceContext:
    def current_input_and_position_ids(self):
        return None
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A Megatron of packages only; ``dynamic_context`` is for the test to write."""
    write_tree(tmp_path, "")
    return tmp_path


def context(tree: Path) -> Path:
    return tree / "megatron" / "core" / "inference" / "contexts" / "dynamic_context.py"


def test_json_has_these_fields(tree):
    context(tree).write_text("class DynamicInferenceContext:\n    pass\n")
    done = run("status", "--json", path=tree)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    names = ["megatron_core", "python", "torch", "location", "enabled", "patches"]
    assert list(report) == names
    assert (report["megatron_core"], report["torch"]) == (None, None)
    assert [patch["id"] for patch in report["patches"]] == [patch.id for patch in SERIES]
    patch = report["patches"][0]
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


def test_mamba_layers_that_cannot_be_imported_are_no_failure(tree):
    context(tree).write_text("class DynamicInferenceContext:\n    pass\n")
    (tree / "megatron" / "core" / "ssm" / "mamba_mixer.py").write_text("import triton\n")
    done = run("status", path=tree)
    assert done.returncode == 0, done.stdout
    _, behind = done.stdout.split("mamba-conv-state: pending\n")
    reason, _ = behind.split("\n", 1)
    assert "MambaMixer._ssm_prefill cannot be patched: " in reason
    assert "No module named 'triton'" in reason


def test_drifted_source(tree):
    context(tree).write_text(DRIFTED)
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


def test_status_of_one_patch(tree):
    context(tree).write_text(DRIFTED)
    done = run("status", "--json", "--only", "input-position-view-cache", path=tree)
    assert [p["id"] for p in json.loads(done.stdout)["patches"]] == ["input-position-view-cache"]
    done = run("status", "--json", "correctness", "-zero-token-logprobs", path=tree)
    found = {patch["id"] for patch in json.loads(done.stdout)["patches"]}
    assert found == {p.id for p in SERIES if p.kind is Kind.CORRECTNESS and p.default} - {
        "zero-token-logprobs"
    }
    unknown = run("status", "input-position", path=tree)
    assert unknown.returncode == 2
    assert "unknown name 'input-position'" in unknown.stderr


def test_list_and_show_are_made_from_the_records():
    listed = run("list")
    assert listed.returncode == 0
    assert "input-position-view-cache  performance  upstream #4634  megatron-core >=0.14,<0.18" in (
        listed.stdout
    )
    shown = run("show", "input-position-view-cache")
    assert shown.returncode == 0
    for part in ("pull/4634", "1df264c4d8", "0.18.0", "by default  on", "removal", GETTER):
        assert part in shown.stdout
    assert run("show", "nothing").returncode == 2


def test_list_and_show_of_a_patch_of_ours():
    line = "nvls-real-token-count  correctness  ours  megatron-core >=0.19,<0.20"
    assert line in run("list").stdout
    shown = run("show", "nvls-real-token-count").stdout
    for part in ("has no such change: this one is ours", "fixed in    no release", "off: select"):
        assert part in shown
    assert "None" not in shown


def test_check_reads_a_tree_that_cannot_be_imported(tmp_path):
    file = write_tree(tmp_path / "fork", DRIFTED + "raise OSError\n", version=(0, 16, 9))
    done = run("check", "--megatron", str(tmp_path / "fork"))
    assert done.returncode == 3, done.stderr
    assert f"megatron-core 0.16.9rc1 in {tmp_path / 'fork'}" in done.stdout
    assert f"{file}:3: {GETTER}" in done.stdout
    for part in (
        "digest ",
        "expected 1a2cfb0c86666fe1",
        "expected a plain method with the hook's parameter",
        "(upstreamed)",
    ):
        assert part in done.stdout
    assert "cannot be accepted" in done.stdout


@pytest.mark.parametrize("folder", ["", "megatron", "megatron/core"])
def test_check_takes_the_root_or_a_folder_of_megatron(tmp_path, folder):
    write_tree(tmp_path / "fork", "class DynamicInferenceContext: pass\n", version=(0, 1, 0))
    done = run("check", "--json", "--megatron", str(tmp_path / "fork" / folder))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["megatron"], report["megatron_core"]) == (str(tmp_path / "fork"), "0.1.0rc1")
    assert {patch["verdict"] for patch in report["patches"]} == {"not_applicable"}


def test_check_of_what_is_no_megatron(tmp_path):
    done = run("check", "--megatron", str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path} is not a Megatron tree: expected megatron/core/__init__.py" in done.stderr
    done = run("check")
    assert done.returncode == 2
    assert "pip install megatron-core" in done.stderr


def test_run_without_a_command():
    done = run("run", "--strict", "--")
    assert done.returncode == 2
    assert "expected a command after --" in done.stderr


def test_run_refuses_an_unknown_patch_before_it_starts_anything():
    done = run("run", "--only", "nothing", "--", "echo", "started")
    assert done.returncode == 2
    assert "unknown name 'nothing'" in done.stderr
    assert "started" not in done.stdout


def test_help_has_examples():
    done = run("--help")
    assert done.returncode == 0
    assert "megatron-patch run -- torchrun" in done.stdout
