"""What is known to be wrong with a release, with and without patches, recognised by its cause.

Each has a predicate on what was observed. A complaint that none explains is a finding.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from .oracles import Case, Complaint

RELEASE = Version(importlib.metadata.version("megatron-core"))


@dataclass(frozen=True)
class Defect:
    """Something that is wrong with releases and that no patch of this package mends."""

    name: str
    releases: str
    why: str
    explains: Callable[[Case, Complaint], bool]
    """Whether a complaint of a run comes from it, by what was observed."""


def recognise(case: Case, complaint: Complaint) -> Defect | None:
    """The defect that a complaint comes from, if one is known."""
    for defect in DEFECTS:
        if RELEASE in SpecifierSet(defect.releases) and defect.explains(case, complaint):
            return defect
    return None


def _is_list(complaint: Complaint, *names: str) -> bool:
    return complaint.kind == "count" and complaint.facts["list"] in names


def _prompt_was_cached(case: Case, complaint: Complaint) -> bool:
    if complaint.request is None:
        return False
    skipped = sum(
        case.skipped(complaint.request, part) for part in range(len(case.parts(complaint.request)))
    )
    return skipped > 0


DEFECTS: tuple[Defect, ...] = ()
