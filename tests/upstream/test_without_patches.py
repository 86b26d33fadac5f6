"""The mirror shows what the patches are for: without them, what proves a patch fails.

Nothing else fails: what upstream tests beside that holds on the old releases as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import megatron_patch
from megatron_patch import State, testing

from ..conftest import RELEASE, SOURCE

HERE = Path(__file__).parent
VIEW_CACHE = "contexts.test_dynamic_context.TestDynamicContext"

ALLOCATOR = "contexts.test_kv_block_allocator"

# The tests that cannot pass without the patch, by its id, and the releases where that is so.
PROOFS = {
    "input-position-view-cache": {
        f"{VIEW_CACHE}::test_current_input_and_position_ids_view_cache": "<0.18",
    },
    "block-allocator-reset": {
        f"{ALLOCATOR}::test_allocate_release_reset_round_trip_no_prefix_caching": "<0.16",
        f"{ALLOCATOR}::test_reset_under_inference_mode_preserves_mutable_block_bag": ">=0.16,<0.20",
    },
}


def outcomes(report: Path) -> dict[str, str]:
    """`passed`, `skipped`, `failure` or `error` of each test in a JUnit report."""
    package = f"{__package__}."
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.attrib['classname'].removeprefix(package)}::{case.attrib['name']}"
        result = [e.tag for e in case if e.tag in ("skipped", "failure", "error")]
        found[name] = result[0] if result else "passed"
    return found


@pytest.fixture(scope="module")
def without_patches(tmp_path_factory):  # type: ignore[no-untyped-def]
    """The outcome of each mirrored test in a process of its own, with MEGATRON_PATCH=none."""
    report = tmp_path_factory.mktemp("without") / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE)]
    command += [f"--ignore={__file__}", f"--junit-xml={report}"]
    done = subprocess.run(
        command,
        cwd=HERE.parents[1],
        env={**os.environ, "MEGATRON_PATCH": "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    # 0: all passed, 1: some failed. Any other status: pytest did not run.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return outcomes(report)


@pytest.fixture
def states(monkeypatch):  # type: ignore[no-untyped-def]
    """The state of each patch by default, also if this process was told to run without."""
    testing.context_class()
    monkeypatch.delenv("MEGATRON_PATCH", raising=False)
    megatron_patch.install()
    yield {entry.id: entry.state for entry in megatron_patch.status()}
    monkeypatch.undo()
    megatron_patch.install()


def test_exactly_the_proofs_of_applied_patches_fail(without_patches, states):
    expected = {
        name
        for id, state in states.items()
        for name, releases in PROOFS.get(id, {}).items()
        if state is State.APPLIED and RELEASE in SpecifierSet(releases)
    }
    failed = {name for name, result in without_patches.items() if result in ("failure", "error")}
    assert failed == expected


def test_no_proof_is_skipped(without_patches):
    for names in PROOFS.values():
        for name, releases in names.items():
            fails = RELEASE in SpecifierSet(releases) and not SOURCE
            expected = "failure" if fails else "passed"
            assert without_patches[name] == expected
