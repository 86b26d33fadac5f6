"""``status``: import what the patches edit, and say what became of each."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
from pathlib import Path

from .. import enabling
from .. import status as status_of_process
from ..edits import Target
from ..errors import EnablingError
from ..launcher import SITE
from ..model import Patch
from ..sources import find_module_spec, megatron_version
from ..states import UNHEALTHY, PatchStatus, State
from . import SERIES, chosen


def status(options: argparse.Namespace) -> int:
    """The state of each patch in this process; 1 when one needs a look."""
    ids = chosen(SERIES, options)
    problems = _import_targets()
    patches = [_explained(entry, problems) for entry in status_of_process() if entry.id in ids]
    report = {
        "megatron_core": megatron_version(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "location": str(Path(__file__).parents[1]),
        "enabled": enabled_by(),
        "patches": [entry.as_dict() for entry in patches],
    }
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print(
            f"megatron-core {report['megatron_core'] or 'not installed'}, "
            f"Python {report['python']}, torch {report['torch'] or 'not installed'}\n"
            f"megatron_patch from {report['location']}\n"
            f"each start of this Python: {report['enabled'] or 'not patched'}"
        )
        for entry in patches:
            print(f"{entry.id}: {entry.state}\n    {entry.reason}")
    return int(any(map(_needs_a_look, patches)))


def enabled_by() -> str | None:
    """What the file of ``megatron-patch enable`` does; ``None`` where there is none."""
    try:
        found = enabling.enabled()
        if found is None:
            return None
        file = enabling.folder() / enabling.NAME
    except EnablingError as error:
        return f"not known: {error}"
    if not (found / "sitecustomize.py").is_file():
        return f"not patched: {file} names a megatron_patch that is gone, {found.parent}"
    if found.resolve() != SITE.resolve():
        return f"patched, by another megatron_patch, {found.parent}: {file} names it"
    return f"patched, by {file}"


def _needs_a_look(entry: PatchStatus) -> bool:
    if entry.state is not State.PENDING:
        return entry.state in UNHEALTHY
    # Releases without an HTTP server for the dynamic engine have none to patch.
    return not any(patch.id == entry.id and patch.may_stay_pending for patch in SERIES)


def _modules(patch: Patch) -> list[str]:
    """The modules that a patch may have to wait for, that of its own target first."""
    edits = [edit.target for variant in patch.variants for edit in variant.edits]
    return list(dict.fromkeys(Target.parse(target).module for target in (patch.target, *edits)))


def _import_targets() -> dict[str, str]:
    """Import what the patches edit; returns what went wrong, by module."""
    problems = {}
    for name in dict.fromkeys(name for patch in SERIES for name in _modules(patch)):
        try:
            if find_module_spec(name.partition(".")[0]) is None:
                problems[name] = "Megatron-Core is not installed: pip install megatron-core"
            elif find_module_spec(name) is not None:  # else of other releases
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
    # Without Triton, for example, there are no Mamba layers, and engines of other models run.
    waits = patch.may_stay_pending and not patch.is_of_server
    return entry._replace(state=State.PENDING if waits else State.FAILED, reason=reason)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
