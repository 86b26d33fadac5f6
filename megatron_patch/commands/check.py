"""``check``: what the patches would do in a tree."""

from __future__ import annotations

import argparse
import json
from functools import partial

from .. import in_place, inspection
from ..source_tree import SourceTree
from ..sources import megatron_version
from . import SERIES, SOME_DO_NOT_FIT, chosen, note, settings_for


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
    settings = settings_for(SERIES, options)
    findings = inspection.inspect_all(tree, SERIES, chosen(SERIES, options), settings, explain)
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
        print(inspection.summary(findings))
    return SOME_DO_NOT_FIT if inspection.some_do_not_fit(findings) else 0
