"""Upstream's tests that fail with patches and are right to: the reviewed list.

An entry is for a test that asserts the very thing that a patch changes on purpose. The reason says
which patch, and why the test is no longer right.
"""

from __future__ import annotations

from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import Version


@dataclass(frozen=True)
class Intended:
    """A test that is meant to fail with patches."""

    test: str
    """Its id in pytest, from the root of a checkout, without parameters."""
    releases: str
    """Of Megatron-Core, such as `>=0.18,<0.19`."""
    reason: str

    def applies_to(self, release: str) -> bool:
        return SpecifierSet(self.releases, prereleases=True).contains(Version(release))

    def matches(self, test: str) -> bool:
        """Whether `test`, an id with parameters or without, is this test."""
        return test.partition("[")[0] == self.test


INTENDED = (
    Intended(
        "tests/unit_tests/inference/contexts/test_gpu_view.py"
        "::TestContextGPUView::test_layout_with_and_without_mamba",
        ">=0.18,<0.19",
        "asserts index tensors of 32 bits, which kv-append-offset-dtype widens to 64; upstream "
        "changed the test together with the code (#4855)",
    ),
)
