"""``check``: what the patches would do in a tree."""

from __future__ import annotations

import argparse
import json
from functools import partial

from .. import in_place, inspection
from ..judge import trees_kept
from ..settings import Settings
from ..source_tree import SourceTree
from ..sources import megatron_version
from ..verdicts import Verdict
from . import SERIES, SOME_DO_NOT_FIT, chosen, note


def check(options: argparse.Namespace) -> int:
    """Judge the patches on a tree."""
    if options.against and not options.diff:
        options.usage_error("--against says what --diff compares with: add --diff")
    explain = None
    if options.diff:
        from ..differences import differences

        against = SourceTree.at(options.against) if options.against else None
        explain = partial(differences, against=against)
    tree = SourceTree.at(options.megatron) if options.megatron else SourceTree.installed()
    note(in_place.interrupted(tree))
    settings = Settings.from_environment(SERIES)
    ids = chosen(SERIES, options)
    with trees_kept():
        findings = [
            inspection.inspect(
                patch, tree, settings.accepted.get(patch.id, frozenset()), SERIES, explain
            )
            for patch in SERIES
            if patch.id in ids
        ]
    version = megatron_version(tree.read)
    if options.json:
        report = {
            "megatron": str(tree.root),
            "megatron_core": version,
            "patches": [finding.as_dict() for finding in findings],
        }
        print(json.dumps(report, indent=2))
    else:
        print(f"megatron-core {version or 'of unknown version'} in {tree.root}")
        for finding in findings:
            print(finding)
    drifted = any(finding.verdict is Verdict.DRIFTED for finding in findings)
    return SOME_DO_NOT_FIT if drifted else 0
