"""``report``: one page of what is patched, for an incident or a review."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import in_place
from ..inspection import some_do_not_fit
from ..source_tree import SourceTree
from . import SERIES, SOME_DO_NOT_FIT, chosen, note, settings_for


def add_to(commands: Any, add_ids: Any, add_tree: Any) -> None:
    """Add the command to those of the command line, which has ``add_ids`` and ``add_tree``."""
    command = commands.add_parser(
        "report",
        help="one page for an incident or a review: what is patched, by which code, and why",
        description="Print what will be patched in a Megatron tree, with the difference in each "
        "function and the reason for each patch, and the environment. Nothing of the tree is "
        "imported. The page of --html needs no other file, no script and no network.",
        epilog=f"exit status: that of check, {SOME_DO_NOT_FIT} with the report written when some "
        "of the patches that are on do not fit; 1 when the file cannot be written",
    )
    add_ids(command, "all patches, and those that MEGATRON_PATCH leaves out are said to be off")
    add_tree(command, required=False)
    command.add_argument(
        "--against",
        metavar="DIR",
        type=Path,
        help="a tree whose source is known: show the methods of drifted patches as differences to "
        "those there",
    )
    command.add_argument("--html", metavar="FILE", type=Path, help="write a page for a browser")
    command.add_argument(
        "--force", action="store_true", help="also where FILE is there, and is no report"
    )
    command.set_defaults(function=report)


def report(options: argparse.Namespace) -> int:
    """Print or write the report."""
    from .. import report as reporting

    tree = SourceTree.at(options.megatron) if options.megatron else SourceTree.installed()
    note(in_place.interrupted(tree))
    against = SourceTree.at(options.against) if options.against else None
    made = reporting.collected(
        tree,
        SERIES,
        chosen(SERIES, options),
        settings_for(SERIES, options),
        given=",".join(options.only),
        against=against,
    )
    if options.html:
        reporting.write(made, options.html, force=options.force)
        print(f"wrote {options.html}")
    else:
        print(reporting.text(made), end="")
    return SOME_DO_NOT_FIT if some_do_not_fit(made.findings) else 0
