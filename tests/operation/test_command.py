"""The command on the installed Megatron, and on a copy that somebody has changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

import megatron_patch
from megatron_patch.source_tree import SourceTree
from megatron_patch.testing.version import core_version

from .. import processor_time
from ..conftest import RELEASE

ID = "input-position-view-cache"
APPLICABLE = RELEASE < Version("0.18")
MODULE = "megatron.core.inference.contexts.dynamic_context"
SHOW = f"""
import importlib, json, sys
importlib.import_module("{MODULE}")
import megatron_patch as package
print(json.dumps([(s.id, str(s.state), s.reason) for s in package.status()]))
"""


def megatron_patch_command(  # type: ignore[no-untyped-def]
    *arguments: str, path: Path | None = None, cwd: Path | None = None, **variables: str
):
    """The console script where the package is installed, so that this tests the installed one."""
    package = str(Path(megatron_patch.__file__).parents[1])
    # Megatron itself may be on PYTHONPATH, too.
    search = [*[str(path)] * bool(path), package, os.environ.get("PYTHONPATH", "")]
    script = Path(sys.executable).with_name("megatron-patch")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "megatron_patch"]
    return subprocess.run(
        [*start, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search)), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def states(stdout: str) -> dict[str, tuple[str, str]]:
    return {id: (state, reason) for id, state, reason in json.loads(stdout.splitlines()[-1])}


def test_check_says_what_the_release_needs_in_under_a_second():
    times = []
    while len(times) < 10 and min(times, default=1) >= 1:
        before = processor_time.of_children()
        done = megatron_patch_command("check", "--json")
        times.append(processor_time.of_children() - before)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["megatron_core"] == core_version()
    verdicts = {patch["id"]: patch["verdict"] for patch in report["patches"]}
    assert verdicts[ID] == ("applicable" if APPLICABLE else "upstreamed")
    assert min(times) < 1, times


def test_run_patches_a_script_that_does_not_know_of_us(tmp_path):
    script = tmp_path / "serve.py"
    script.write_text(SHOW)
    done = megatron_patch_command("run", "--strict", "--", sys.executable, str(script))
    assert done.returncode == 0, done.stderr
    assert states(done.stdout)[ID][0] == ("applied" if APPLICABLE else "upstreamed")


def test_an_engine_logs_the_summary_that_the_readme_shows(tmp_path):
    readme = Path(__file__).parents[2].joinpath("README.md").read_text()
    (shown,) = re.findall(r"`(megatron-core \S+: \d+ applied, .*)`", readme)
    if not shown.startswith(f"megatron-core {core_version()}: "):
        pytest.skip("the README shows another release")
    script = tmp_path / "engine.py"
    script.write_text(
        "import logging\nlogging.basicConfig(level='INFO')\n"
        "import megatron.core.inference.engines.dynamic_engine\n"
        "import megatron.core.models.gpt.gpt_layer_specs\n"
    )
    done = megatron_patch_command("run", sys.executable, "-W", "ignore", str(script))
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("INFO:megatron_patch:")]
    assert said == [f"INFO:megatron_patch:{shown}"]


def fork_of_the_release(root: Path, *names: str) -> Path:
    """A copy of the release that logs in the first of these methods that it has."""
    if not APPLICABLE:
        pytest.skip(f"{RELEASE} has upstream's own cache")
    installed = SourceTree.installed()
    shutil.copytree(installed.root / "megatron" / "core", root / "megatron" / "core")
    file = SourceTree.at(root).path(MODULE)
    assert file is not None
    text = file.read_text(encoding="utf-8")
    name = next(name for name in names if f"def {name}(" in text)
    head = re.compile(rf"(class DynamicInferenceContext\(.*?    def {name}\(.*?\) ?(?:->[^\n]*)?:\n)(        r?\"\"\".*?\"\"\"\n)?", re.S)  # fmt: skip # noqa: E501
    changed, count = head.subn(r"\1\2        self.fork_was_here = True\n", text, count=1)
    assert count == 1
    file.write_text(changed, encoding="utf-8")
    return root


@pytest.fixture
def fork(tmp_path):  # type: ignore[no-untyped-def]
    """A copy of the release that logs in the method which the patch replaces."""
    return fork_of_the_release(tmp_path, "current_input_and_position_ids")


def test_a_fork_is_patched_whatever_it_does_where_the_patch_only_resets_its_own_state(tmp_path):
    script = tmp_path / "serve.py"
    script.write_text(SHOW)
    fork = fork_of_the_release(
        tmp_path, "initialize_all_tensors", "allocate_all_tensors", "__init__"
    )
    done = megatron_patch_command("run", "--", sys.executable, str(script), path=fork)
    assert states(done.stdout)[ID][0] == "applied", done.stderr


def test_a_fork_is_left_alone_until_its_source_is_accepted(fork, tmp_path):
    script = tmp_path / "serve.py"
    script.write_text(SHOW)
    checked = megatron_patch_command("check", "--megatron", str(fork))
    assert checked.returncode == 3, checked.stderr
    assert f"{ID}: drifted" in checked.stdout
    assert re.search(r"dynamic_context\.py:\d+: megatron\.core.*:DynamicInferenceContext\.", checked.stdout)  # fmt: skip # noqa: E501
    (line,) = re.findall(rf"MEGATRON_PATCH_ACCEPT=({ID}@[0-9a-f]{{16}})$", checked.stdout, re.M)

    run = ("run", "--", sys.executable, "-W", "ignore", str(script))
    done = megatron_patch_command(*run, path=fork)
    assert states(done.stdout)[ID][0] == "drifted", done.stderr
    done = megatron_patch_command(*run, path=fork, MEGATRON_PATCH_ACCEPT=line)
    state, reason = states(done.stdout)[ID]
    assert (state, reason[:16]) == ("applied", "accepted source:"), done.stderr
    accepted = megatron_patch_command("check", "--megatron", str(fork), MEGATRON_PATCH_ACCEPT=line)
    assert (accepted.returncode, f"{ID}: applicable" in accepted.stdout) == (0, True)


def test_accepting_the_source_of_a_fork_on_the_release_itself_is_an_error(fork):
    checked = megatron_patch_command("check", "--megatron", str(fork))
    (line,) = re.findall(r"MEGATRON_PATCH_ACCEPT=(\S+)$", checked.stdout, re.M)
    done = megatron_patch_command("check", MEGATRON_PATCH_ACCEPT=line)
    assert done.returncode == 2
    assert f"{line} is not the source of any target" in done.stderr
