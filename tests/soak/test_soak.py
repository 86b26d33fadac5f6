"""A short soak of the installed release, scenario by scenario.

`python tools/soak.py` makes the long one.
"""

from __future__ import annotations

import pytest
from packaging.version import Version

from tools import soak

from ..conftest import RELEASE

pytestmark = pytest.mark.usefixtures("device")


def run(scenario: str, *, seed: int, requests: int) -> soak.Soak:
    """A soak of one scenario; skips the test if the release cannot play it."""
    if scenario not in soak.scenarios():
        pytest.skip(f"megatron-core {RELEASE} lacks a feature of {scenario}")
    ended = soak.Soak([scenario], seed)
    ended.run(requests)
    return ended


@pytest.mark.parametrize("scenario", [*soak.SCENARIOS, soak.MIXED])
def test_requests_end_as_if_alone_and_leave_nothing_behind(scenario):
    ended = run(scenario, seed=100, requests=12)
    assert not ended.failures, "\n".join(map(str, ended.failures))
    assert ended.total()["requests"] >= 12


@pytest.mark.skipif(
    not Version("0.17") <= RELEASE < Version("0.19"),
    reason=f"{RELEASE} has no prefix caching, or counts the holders of a block right",
)
def test_unpatched_a_soak_finds_the_wrong_reference_counts(unpatched):
    found = [failure.error for failure in run("ref-zero", seed=0, requests=50).failures]
    assert any("has the reference count" in error for error in found), found
