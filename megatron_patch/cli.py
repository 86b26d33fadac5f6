"""The command line: ``python -m megatron_patch status [--json]``."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path

from . import status
from .backports import SERIES
from .model import UNHEALTHY, PatchStatus, State, Target
from .sources import find_module_spec

UNSETTLED = UNHEALTHY | {State.PENDING}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="megatron-patch", description="Backports for a pinned Megatron-Core."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "status",
        help="import the target modules and print the state of each patch",
        epilog="exit status: 0 when no patch is pending, drifted, shadowed or failed; else 1",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    return _status(options.json)


def _status(as_json: bool) -> int:
    problems = _import_targets()
    patches = [_explained(entry, problems) for entry in status()]
    report = {
        "megatron_core": _version("megatron-core"),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "location": str(Path(__file__).parent),
        "patches": [entry.as_dict() for entry in patches],
    }
    if as_json:
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


def _import_targets() -> dict[str, str]:
    """Import what the patches edit; returns what went wrong, by module."""
    problems = {}
    for name in dict.fromkeys(Target.parse(patch.target).module for patch in SERIES):
        try:
            if find_module_spec(name.partition(".")[0]) is None:
                problems[name] = "Megatron-Core is not installed: pip install megatron-core"
            else:
                importlib.import_module(name)
        except Exception as error:  # whatever Megatron raises is what we are here to report
            hint = ": pip install torch" if getattr(error, "name", "") == "torch" else ""
            problems[name] = f"importing {name} raised {type(error).__name__}: {error}{hint}"
    return problems


def _explained(entry: PatchStatus, problems: dict[str, str]) -> PatchStatus:
    patch = next(patch for patch in SERIES if patch.id == entry.id)
    problem = problems.get(Target.parse(patch.target).module)
    if entry.state is not State.PENDING or problem is None:
        return entry
    return PatchStatus(
        id=entry.id,
        kind=entry.kind,
        state=State.FAILED,
        reason=f"{patch.target} cannot be patched: {problem}",
        upstream_pr=entry.upstream_pr,
        fixed_in=entry.fixed_in,
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None  # a checkout on PYTHONPATH has no metadata
