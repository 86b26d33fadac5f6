"""``export``, ``apply`` and ``revert``: the patches as source."""

from __future__ import annotations

import argparse
import sys

from .. import export as exporting
from .. import in_place, partly, tree_record
from ..source_edits import SourcePatch, source_patches
from ..source_tree import SourceTree
from ..tree_files import TreeFiles
from ..verdicts import Verdict
from . import SERIES, SOME_DO_NOT_FIT, note, settings_for


def export(options: argparse.Namespace) -> int:
    """Write the patches that fit as files for ``git am``."""
    made, status = _source_patches(SourceTree.at(options.megatron), options)
    if made or not status:  # else there may be an earlier export, of when they did fit
        for path in exporting.write(made, options.output):
            print(f"wrote {path}")
    return status


def apply(options: argparse.Namespace) -> int:
    """Make the edits of the patches that fit in the tree itself, all of these or none."""
    tree = SourceTree.at(options.megatron)
    if options.dry_run:
        note(in_place.interrupted(tree))
        made, status = _source_patches(tree, options)
    else:
        with in_place.held(tree) as found:
            note(found)
            made, status = _source_patches(tree, options)
            in_place.apply(tree, made, force=options.force)
    verb = "would change" if options.dry_run else "changed"
    for patch in made:
        for edit in patch.files:
            print(f"{patch.patch.id}: {verb} {tree.root / edit.path}")
    if not made:
        print("nothing to change")
    return status


def revert(options: argparse.Namespace) -> int:
    """Put back what ``apply`` has changed, or what some of the patches have."""
    tree = SourceTree.at(options.megatron)
    with in_place.held(tree) as found:
        note(found)
        if found and tree_record.load(TreeFiles(tree.root)) is None:
            return 0  # what was interrupted was a `revert` of all
        if options.only:
            settings = settings_for(SERIES, options)
            paths = partly.revert(tree, SERIES, settings.selected, settings.accepted)
        else:
            paths = in_place.revert(tree)
    verb = "changed" if options.only else "put back"
    for path in paths:
        print(f"{verb} {path}")
    if not paths:
        why = "all files are as they were, or of another release"
        print(f"nothing to put back: {'none of these is applied' if options.only else why}")
    return 0


def _source_patches(tree: SourceTree, options: argparse.Namespace) -> tuple[list[SourcePatch], int]:
    """What the options select on the tree, and the exit status; says what is left out."""
    settings = settings_for(SERIES, options)
    made, skipped = source_patches(
        tree,
        SERIES,
        settings.selected,
        allow_drift=options.allow_drift,
        accepted=settings.accepted,
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
    return made, SOME_DO_NOT_FIT if drifted else 0
