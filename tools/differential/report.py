"""How much was run, of what, and what was found."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from megatron_patch.testing.runtime import running
from megatron_patch.testing.version import core_version

from . import kernels
from .configuration import as_dict
from .searching import Search
from .selections import ALL, Selections

Report = dict[str, Any]


def of(search: Search, selections: Selections, seed: int, seconds: float) -> Report:
    """The report of a search, ready for JSON."""
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "versions": {
            "megatron-core": core_version(),
            "torch": importlib.metadata.version("torch"),
            "hypothesis": importlib.metadata.version("hypothesis"),
            "python": platform.python_version(),
        },
        "device": _device(),
        "attention": "flash-attn" if kernels.are_real() else "stand-in",
        "patches": selections.states.get(ALL, {}),
        "configurations": search.examples,
        "fixed by patches": search.fixed,
        "unstable": search.unstable,
        "known defects": dict(search.known.most_common()),
        "dimensions": {
            name: dict(sorted(values.items())) for name, values in sorted(search.values.items())
        },
        "lost": None if search.lost is None else str(search.lost),
        "found": [
            {
                "finding": str(found.finding),
                "patches": list(found.patches),
                "examples": found.examples,
                "command": found.command,
                "configuration": as_dict(found.configuration),
            }
            for found in search.found
        ],
    }


def _device() -> str:
    import torch

    device = running().device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def text(report: Report) -> str:
    """The report for people."""
    lines = [
        f"megatron-core {report['versions']['megatron-core']} on {report['device']}, attention: "
        f"{report['attention']}, seed {report['seed']}, "
        f"{report['seconds']:.0f} s: {report['configurations']} configurations, "
        f"{report['fixed by patches']} of them mended by patches, {len(report['found'])} found"
    ]
    for name, values in report["dimensions"].items():
        lines.append(f"  {name}: " + ", ".join(f"{value} {n}" for value, n in values.items()))
    for name, count in report["known defects"].items():
        lines.append(f"  known defect, {count} times: {name}")
    if report["unstable"]:
        lines.append(f"  not the same twice without patches: {len(report['unstable'])}")
    return "\n".join(lines)
