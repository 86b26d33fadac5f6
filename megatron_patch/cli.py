"""The command line: ``megatron-patch``, the same as ``python -m megatron_patch``."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from . import export, in_place, inspection, launcher, status
from .backports import SERIES
from .errors import DriftedError, NotMegatronError, SettingsError, TreeError
from .judge import TOLD, trees_kept
from .ledger import sources_of
from .model import UNHEALTHY, Judgement, Patch, PatchStatus, State, Target
from .settings import Settings, names_of
from .source_edits import SourcePatch, source_patches
from .source_tree import SourceTree
from .sources import find_module_spec, megatron_version

UNSETTLED = UNHEALTHY | {State.PENDING}

EXAMPLES = """\
examples:
  megatron-patch check                         what will be patched in the installed Megatron
  megatron-patch check --megatron ~/Megatron-LM  ... in a checkout; nothing of it is executed
  megatron-patch status --json                 what is patched in a process, for a machine to read
  megatron-patch run -- torchrun --nproc-per-node 8 serve.py
  megatron-patch run --strict --only correctness -- python -m my.server
  megatron-patch export --megatron ~/Megatron-LM --output patches   for git am patches/*.patch
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.function(options))
    except (NotMegatronError, SettingsError) as error:
        print(f"megatron-patch {options.command}: {error}", file=sys.stderr)
        return 2
    except DriftedError as error:
        print(
            f"megatron-patch {options.command}: nothing was written, for this source is not "
            f"known:\n{error}\nLook at what `megatron-patch check` says; --only leaves patches "
            "out, and --allow-drift edits unknown source for you to read",
            file=sys.stderr,
        )
        return 1
    except TreeError as error:
        print(f"megatron-patch {options.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron-patch",
        description="Backports for a pinned Megatron-Core.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("list", help="the backports, a line each")
    command.set_defaults(function=_list)

    command = commands.add_parser("show", help="all about one backport")
    command.add_argument("patch", metavar="ID", type=_patch)
    command.set_defaults(function=_show)

    command = commands.add_parser(
        "status",
        help="import the target modules and print the state of each patch",
        epilog="exit status: 0 when no patch is pending, drifted, shadowed or failed; else 1",
    )
    command.add_argument("--only", metavar="ID", type=_patch, help="that patch and no other")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(function=_status)

    command = commands.add_parser(
        "check",
        help="say what the patches would do in a Megatron tree, without importing it",
        epilog="exit status: 0; 1 when a patch is drifted; 2 when there is no Megatron tree",
    )
    command.add_argument(
        "--megatron",
        metavar="DIR",
        type=Path,
        help="a Megatron-LM checkout, or a directory that megatron/core is in; "
        "default: the installed Megatron",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(function=_check)

    command = commands.add_parser(
        "export",
        help="write the patches that fit a Megatron tree as files for git am",
        epilog="exit status: 0; 1 when a patch is drifted: then nothing is written; "
        "2 when there is no Megatron tree",
    )
    _add_tree(command)
    command.add_argument("--output", metavar="DIR", type=Path, required=True)
    _add_selection(command)
    command.set_defaults(function=_export)

    command = commands.add_parser(
        "apply",
        help="make the edits of the patches in the files of a Megatron tree",
        description="Make the edits of the patches that are applicable in the files of the tree. "
        "Afterwards check says upstreamed, and import megatron_patch leaves the tree alone.",
        epilog="exit status: 0; 1 when a patch is drifted or the tree is not clean: then nothing "
        "is written; 2 when there is no Megatron tree",
    )
    _add_tree(command)
    _add_selection(command)
    command.add_argument("--dry-run", action="store_true", help="say what would be changed")
    command.set_defaults(function=_apply)

    command = commands.add_parser("revert", help="put back the files that apply has changed")
    _add_tree(command)
    command.set_defaults(function=_revert)

    command = commands.add_parser(
        "run",
        help="run a command with the patches in it and in all Python processes it starts",
        description="Run COMMAND with the patches active in it and in every Python process that "
        "it starts on this machine, as if each had imported megatron_patch before Megatron. "
        "Needs no change of code; a Python that is started with -E, -I or -S is not reached.",
        epilog="exit status: that of COMMAND; 127 when it is not found",
    )
    command.add_argument(
        "--only", metavar="ID", action="append", default=[], help="sets MEGATRON_PATCH; repeatable"
    )
    command.add_argument("--strict", action="store_true", help="sets MEGATRON_PATCH_STRICT=1")
    command.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    command.set_defaults(function=_run, usage_error=command.error)
    return parser


def _add_tree(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--megatron",
        metavar="DIR",
        type=Path,
        required=True,
        help="a Megatron-LM checkout, or a directory that megatron/core is in",
    )


def _add_selection(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--only",
        metavar="ID",
        type=_ids,
        action="append",
        help="that patch, or a group such as upstream; repeatable; default: those that are on by "
        "default",
    )
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


def _ids(text: str) -> set[str]:
    """The ids of a group, or of one patch."""
    return names_of(SERIES).get(text) or {_patch(text).id}


def _list(_: argparse.Namespace) -> int:
    for patch in SERIES:
        opt_in = "" if patch.default else "  (only when selected by name)"
        number = "" if patch.upstream_pr is None else f" #{patch.upstream_pr}"
        print(f"{patch.id}  {patch.kind}  {patch.origin}{number}  megatron-core {patch.releases}")
        print(f"    {patch.summary}{opt_in}")
    return 0


def _show(options: argparse.Namespace) -> int:
    patch: Patch = options.patch
    targets = {edit.target: None for variant in patch.variants for edit in variant.edits}
    rows = {
        "summary": patch.summary,
        "kind": str(patch.kind),
        "group": str(patch.origin),
        "without it": patch.symptom,
        "with it": patch.outcome,
        "upstream": f"{export.UPSTREAM}/pull/{patch.upstream_pr}, "
        f"commit {patch.upstream_commit} of {patch.upstream_date}"
        if patch.upstream_pr is not None
        else "has no such change: this one is ours",
        "fixed in": f"megatron-core {patch.fixed_in}" if patch.fixed_in else "no release",
        "applies to": f"megatron-core {patch.releases}: "
        + "; ".join(s.releases for s in sources_of(patch) if s.proved not in TOLD),
        "by default": "on" if patch.default else "off: select it by its id in MEGATRON_PATCH",
        "edits": "\n".join(targets),
        "removal": patch.removal,
    }
    print(patch.id)
    for name, text in rows.items():
        lines = text.splitlines() if name == "edits" else textwrap.wrap(text, 84)
        print(f"  {name:12}" + ("\n" + " " * 14).join(lines))
    return 0


def _status(options: argparse.Namespace) -> int:
    problems = _import_targets()
    chosen = {options.only.id} if options.only else {patch.id for patch in SERIES}
    patches = [_explained(entry, problems) for entry in status() if entry.id in chosen]
    report = {
        "megatron_core": megatron_version(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "location": str(Path(__file__).parent),
        "patches": [entry.as_dict() for entry in patches],
    }
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print(
            f"megatron-core {report['megatron_core'] or 'not installed'}, "
            f"Python {report['python']}, torch {report['torch'] or 'not installed'}\n"
            f"megatron_patch from {report['location']}"
        )
        for entry in patches:
            print(f"{entry.id}: {entry.state}\n    {entry.reason}")
    return int(any(entry.state in UNSETTLED for entry in patches))


def _modules(patch: Patch) -> list[str]:
    """The modules that a patch may have to wait for, that of its own target first."""
    edits = [edit.target for variant in patch.variants for edit in variant.edits]
    return list(dict.fromkeys(Target.parse(target).module for target in (patch.target, *edits)))


def _import_targets() -> dict[str, str]:
    """Import what the patches edit; returns what went wrong, by module."""
    problems = {}
    needed = {_modules(patch)[0] for patch in SERIES}
    for name in dict.fromkeys(name for patch in SERIES for name in _modules(patch)):
        try:
            if find_module_spec(name.partition(".")[0]) is None:
                problems[name] = "Megatron-Core is not installed: pip install megatron-core"
            elif name in needed or find_module_spec(name) is not None:  # else of other releases
                importlib.import_module(name)
        except Exception as error:  # whatever Megatron raises is what we are here to report
            hint = ": pip install torch" if getattr(error, "name", "") == "torch" else ""
            problems[name] = f"importing {name} raised {type(error).__name__}: {error}{hint}"
    return problems


def _explained(entry: PatchStatus, problems: dict[str, str]) -> PatchStatus:
    patch = next(patch for patch in SERIES if patch.id == entry.id)
    problem = next((problems[name] for name in _modules(patch) if name in problems), None)
    if entry.state is not State.PENDING or problem is None:
        return entry
    reason = f"{patch.target} cannot be patched: {problem}"
    return entry._replace(state=State.FAILED, reason=reason)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check(options: argparse.Namespace) -> int:
    tree = SourceTree.at(options.megatron) if options.megatron else SourceTree.installed()
    settings = Settings.from_environment(SERIES)
    with trees_kept():
        findings = [
            inspection.inspect(patch, tree, settings.accepted.get(patch.id, frozenset()), SERIES)
            for patch in SERIES
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
    return int(any(finding.verdict == Judgement.DRIFTED.value for finding in findings))


def _run(options: argparse.Namespace) -> int:
    command = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    if not command:
        options.usage_error("expected a command after --")
    environment = launcher.environment_for(os.environ, only=options.only, strict=options.strict)
    # What the processes of the command would stumble over is told here, before any starts.
    Settings.from_environment(SERIES, environment)
    return launcher.run(command, environment)


def _source_patches(options: argparse.Namespace) -> tuple[SourceTree, list[SourcePatch]]:
    """What the options select on the tree; says what is left out."""
    tree = SourceTree.at(options.megatron)
    selected = frozenset().union(*options.only or [_ids("all")])
    made, skipped = source_patches(tree, SERIES, selected, allow_drift=options.allow_drift)
    for entry in skipped:
        print(f"left out {entry.patch.id}: {entry.judgement} ({entry.reason})")
    return tree, made


def _export(options: argparse.Namespace) -> int:
    _, made = _source_patches(options)
    for path in export.write(made, options.output):
        print(f"wrote {path}")
    return 0


def _apply(options: argparse.Namespace) -> int:
    tree, made = _source_patches(options)
    if not options.dry_run:
        in_place.apply(tree, made)
    verb = "would change" if options.dry_run else "changed"
    for patch in made:
        for edit in patch.files:
            print(f"{patch.patch.id}: {verb} {tree.root / edit.path}")
    if not made:
        print("nothing to change")
    return 0


def _revert(options: argparse.Namespace) -> int:
    for path in in_place.revert(SourceTree.at(options.megatron)):
        print(f"put back {path}")
    return 0
