"""The mirror shows what the patches are for: without them, what proves a patch fails.

And nothing else does: what upstream promises of the rest holds in the old releases as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import megatron_patch
from megatron_patch import State, testing

HERE = Path(__file__).parent
VIEW_CACHE = "contexts.test_dynamic_context.TestDynamicContext"

# The tests that cannot pass without the patch, by its id.
PROOFS = {
    "input-position-view-cache": {
        f"{VIEW_CACHE}::test_current_input_and_position_ids_view_cache",
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
    # 0: all passed, 1: some failed. Anything else is no run.
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
    applied = [
        PROOFS[id] for id, state in states.items() if id in PROOFS and state is State.APPLIED
    ]
    failed = {name for name, result in without_patches.items() if result in ("failure", "error")}
    assert failed == set().union(*applied)


def test_no_proof_is_skipped(without_patches, states):
    expected = {State.APPLIED: "failure", State.UPSTREAMED: "passed"}
    for id, names in PROOFS.items():
        for name in names:
            assert without_patches[name] == expected[states[id]]
