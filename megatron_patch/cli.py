"""The command line: ``megatron-patch``, the same as ``python -m megatron_patch``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .commands import (
    PROBLEM,
    SERIES,
    SOME_DO_NOT_FIT,
    check,
    enable,
    records,
    report,
    run,
    source,
    status,
)
from .errors import MegatronPatchError, NotMegatronError, SettingsError
from .given_ids import with_ids
from .model import Patch
from .output import printing
from .settings import names_of

NAME = "megatron-patch"
PACKAGE = Path(__file__).parent
EXAMPLES = """\
examples:
  megatron-patch check                         what will be patched in the installed Megatron
  megatron-patch check --megatron ~/Megatron-LM  ... in a checkout; nothing of it is executed
  megatron-patch check --diff step-log-sync --megatron ~/fork --against ~/Megatron-LM-0.16.1
  megatron-patch report --html report.html     the same with each change, to read or to send
  megatron-patch status --json                 what is patched in a process, for a machine to read
  megatron-patch run -- torchrun --nproc-per-node 8 serve.py
  megatron-patch run --strict --only correctness -- python -m my.server
  megatron-patch export --megatron ~/Megatron-LM --output patches   for git am patches/*.patch
"""

_SOME = (
    f"{SOME_DO_NOT_FIT} when some of the patches did not fit: these are skipped, each as a "
    "whole, and the rest is written"
)
_VARIABLES = (
    "MEGATRON_PATCH, where no ids are given, MEGATRON_PATCH_ACCEPT and MEGATRON_PATCH_RECORDS "
    "count as they do for import megatron_patch."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return printing(lambda: _main(sys.argv[1:] if arguments is None else arguments), NAME)


def _main(arguments: Sequence[str]) -> int:
    name = NAME
    try:
        options = _parser().parse_args(with_ids(arguments, names_of(SERIES)))
        if PROBLEM is not None:
            raise PROBLEM
        name = f"{NAME} {options.command}"
        return int(options.function(options))
    except (NotMegatronError, SettingsError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except MegatronPatchError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Backports for a pinned Megatron-Core.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__} in {PACKAGE}")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("list", help="the backports, a line each")
    command.set_defaults(function=records.list_records)

    command = commands.add_parser("show", help="all about one backport")
    command.add_argument("patch", metavar="ID", type=_patch)
    command.set_defaults(function=records.show)

    command = commands.add_parser(
        "status",
        help="import the target modules and print the state of each patch",
        epilog="exit status: 0 when no patch is pending, drifted, shadowed or failed; else 1",
    )
    _add_ids(command, "all patches")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(function=status.status)

    command = commands.add_parser(
        "check",
        help="say what will be patched in a Megatron tree, without importing it",
        epilog=f"exit status: 0; {SOME_DO_NOT_FIT} when some of the patches that are on do not "
        "fit: they are drifted; 2 when there is no Megatron tree, or a name or a setting is not "
        "understood. "
        f"{_VARIABLES}",
    )
    _add_ids(command, "all patches, and those that MEGATRON_PATCH leaves out are said to be off")
    _add_tree(command, required=False)
    command.add_argument(
        "--diff",
        action="store_true",
        help="show where the code of a drifted patch is other than the patch expects it",
    )
    command.add_argument(
        "--against",
        metavar="DIR",
        type=Path,
        help="with --diff: a tree whose source is known, such as an unpacked release; show the "
        "methods of drifted patches as differences to those there",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(function=check.check, usage_error=command.error)

    report.add_to(commands, _add_ids, _add_tree)

    command = commands.add_parser(
        "export",
        help="write the patches that fit a Megatron tree as files for git am",
        epilog=f"exit status: 0; {_SOME}; 2 when there is no Megatron tree, or a name or a "
        f"setting is not understood. {_VARIABLES}",
    )
    _add_tree(command)
    command.add_argument("--output", metavar="DIR", type=Path, required=True)
    _add_selection(command)
    command.set_defaults(function=source.export)

    command = commands.add_parser(
        "apply",
        help="make the edits of the patches in the files of a Megatron tree",
        description="Make the edits of the patches that are applicable in the files of the tree. "
        "Afterwards check says upstreamed, and import megatron_patch leaves the tree alone.",
        epilog=f"exit status: 0; {_SOME}; 1 when the tree is not clean, or git cannot say, and 2 "
        "when there is no Megatron tree, or a name or a setting is not understood: then nothing "
        "is written. "
        f"{_VARIABLES}",
    )
    _add_tree(command)
    _add_selection(command)
    command.add_argument("--dry-run", action="store_true", help="say what would be changed")
    command.add_argument(
        "--force",
        action="store_true",
        help="write files also where git says that they have changes, or cannot say it",
    )
    command.set_defaults(function=source.apply)

    command = commands.add_parser(
        "revert",
        help="put back the files that apply has changed, or take back some of its patches",
        epilog="exit status: 0; 1 when a file was changed since, when nothing was applied, or when "
        "it cannot be told which patches are there: then nothing is written; 2 when there is no "
        "Megatron tree, or a name is not understood",
    )
    _add_tree(command)
    _add_ids(command, "all that apply has changed, as it was before the first apply")
    command.set_defaults(function=source.revert)

    enable.add_to(commands)

    command = commands.add_parser(
        "run",
        help="run a command with the patches in it and in all Python processes it starts",
        description="Run COMMAND with the patches active in it and in every Python process that it "
        "starts on this machine, as if each had imported megatron_patch before Megatron. Ids in "
        "front of -- are those of --only. Needs no change of code. A Python that is started with "
        "another PYTHONPATH, an empty environment, -E, -I or -S is not reached: if it is seen "
        "to load PyTorch, a line on stderr says so, and with --strict the launch fails. "
        "MEGATRON_PATCH=none in its environment says that it is meant to run without the patches. "
        "`megatron-patch enable` reaches all of these but -S.",
        epilog="exit status: that of COMMAND; 126 when it cannot be executed, 127 when it is not "
        "found; with --strict 1 instead of 0 when a process with PyTorch ran without the patches",
    )
    command.add_argument(
        "--only", metavar="ID", action="append", default=[], help="sets MEGATRON_PATCH; repeatable"
    )
    command.add_argument("--strict", action="store_true", help="sets MEGATRON_PATCH_STRICT=1")
    command.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    command.set_defaults(function=run.run, usage_error=command.error)
    return parser


def _add_tree(command: argparse.ArgumentParser, *, required: bool = True) -> None:
    command.add_argument(
        "--megatron",
        metavar="DIR",
        type=Path,
        required=required,
        help="a Megatron-LM checkout, or a directory that megatron/core is in"
        + "; default: the installed Megatron" * (not required),
    )


def _add_ids(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "--only",
        metavar="ID",
        action="append",
        default=[],
        help="the same as ID; repeatable",
    )
    # For the help alone: `with_ids` has made them values of `--only`.
    command.add_argument(
        "ids",
        metavar="[-]ID",
        nargs="*",
        help="a patch or a group, such as upstream, as in MEGATRON_PATCH: a list that begins with "
        f"-ID takes away from those that are on by default; default: {default}",
    )


def _add_selection(command: argparse.ArgumentParser) -> None:
    _add_ids(command, "those of MEGATRON_PATCH")
    command.add_argument(
        "--allow-drift",
        action="store_true",
        help="edit source that is not known too, if the edits fit it: read the result",
    )


def _patch(text: str) -> Patch:
    for patch in SERIES:
        if patch.id == text:
            return patch
    known = ", ".join(patch.id for patch in SERIES)
    raise argparse.ArgumentTypeError(f"there is no backport {text!r}; expected one of {known}")
