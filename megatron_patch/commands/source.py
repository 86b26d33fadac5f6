"""``export``, ``apply`` and ``revert``: the patches as source."""

from __future__ import annotations

import argparse
import sys

from .. import export as exporting
from .. import in_place
from ..settings import Settings, selected
from ..source_edits import SourcePatch, source_patches
from ..source_tree import SourceTree
from ..verdicts import Verdict
from . import SERIES, SOME_DO_NOT_FIT


def export(options: argparse.Namespace) -> int:
    """Write the patches that fit as files for ``git am``."""
    _, made, status = _source_patches(options)
    if made or not status:  # else there may be an earlier export, of when they did fit
        for path in exporting.write(made, options.output):
            print(f"wrote {path}")
    return status


def apply(options: argparse.Namespace) -> int:
    """Make the edits of the patches that fit in the tree itself, all of these or none."""
    tree, made, status = _source_patches(options)
    if not options.dry_run:
        in_place.apply(tree, made)
    verb = "would change" if options.dry_run else "changed"
    for patch in made:
        for edit in patch.files:
            print(f"{patch.patch.id}: {verb} {tree.root / edit.path}")
    if not made:
        print("nothing to change")
    return status


def revert(options: argparse.Namespace) -> int:
    """Put back what ``apply`` has changed."""
    for path in in_place.revert(SourceTree.at(options.megatron)):
        print(f"put back {path}")
    return 0


def _source_patches(options: argparse.Namespace) -> tuple[SourceTree, list[SourcePatch], int]:
    """What the options select on the tree, and the exit status; says what is left out."""
    tree = SourceTree.at(options.megatron)
    made, skipped = source_patches(
        tree,
        SERIES,
        selected(SERIES, ",".join(options.only), "ID"),
        allow_drift=options.allow_drift,
        accepted=Settings.from_environment(SERIES).accepted,
        partial=True,
    )
    drifted = [entry for entry in skipped if entry.verdict is Verdict.DRIFTED]
    for entry in skipped:
        if entry not in drifted:
            print(f"left out {entry.patch.id}: {entry.verdict} ({entry.reason})")
    for entry in drifted:
        print(f"skipped {entry.patch.id}: drifted ({entry.reason})", file=sys.stderr)
    if drifted:
        ids = " ".join(entry.patch.id for entry in drifted)
        print(
            f"megatron-patch {options.command}: {len(drifted)} of the selected patches did not "
            "fit, and nothing of them is written. Look at "
            f"`megatron-patch check --diff {ids}` with the same --megatron; "
            "--allow-drift edits unknown source for you to read",
            file=sys.stderr,
        )
    return tree, made, SOME_DO_NOT_FIT if drifted else 0
