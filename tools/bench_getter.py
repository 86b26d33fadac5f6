"""Time ``current_input_and_position_ids()`` on a hit, on the real context, patched and not.

Run it in an environment of each release; upstream's own cached getter is that of 0.18.2. With
``--json`` it prints nanoseconds per call: the median, over the rounds, of loops that alternate
between the variants. ``no-op`` is a method that returns at once: the price of any call. The
``gpu_view`` variant is this package's getter for source between #4306 and #4634, put on the same
context as upstream's, so that those two are compared within one process.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
import timeit
from pathlib import Path
from types import MethodType
from typing import Any

# A script's own directory is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream import input_position_view_cache as backport
from megatron_patch.testing.version import core_version
from tools.benchmarking import as_it_is


def no_op(self: Any, *, num_warmup_tokens: int | None = None) -> None:
    """What a call costs that does nothing."""


def variants() -> dict[str, Any]:
    """Bound getters by name, each on a context of its own."""
    cls = testing.context_class()
    patched = vars(cls)["current_input_and_position_ids"]
    (status,) = (s for s in megatron_patch.status() if s.id == "input-position-view-cache")
    functions: dict[str, Any] = {"no-op": no_op}
    if status.state is State.APPLIED:
        megatron_patch.uninstall()
        functions["unpatched"] = as_it_is(vars(cls)["current_input_and_position_ids"])
        megatron_patch.install()
        functions["patched"] = vars(cls)["current_input_and_position_ids"]
    elif status.state is not State.UPSTREAMED:  # unknown source, or none is to be patched
        functions["unpatched"] = patched
    else:
        functions["upstream"] = patched
        functions["gpu_view"] = backport.gpu_view_views
        cls._cache_input_position_views = backport._cache_input_position_views
    bound = {}
    for name, function in functions.items():
        context = testing.build_context(testing.EngineSpec())
        context.padded_active_token_count = 64
        if name == "gpu_view":
            backport.drop_views(context)
        bound[name] = MethodType(function, context)
    return bound


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--loops", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = testing.start()
    timers = {name: timeit.Timer("f()", globals={"f": f}) for name, f in variants().items()}
    testing.stop()  # the stand-ins would slow down the slicing of the unpatched getter
    samples: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(options.rounds):
        for name, timer in timers.items():
            samples[name].append(timer.timeit(options.loops) / options.loops * 1e9)
    result = {name: statistics.median(values) for name, values in samples.items()}
    ratios = {}
    if "patched" in result:
        ratios["unpatched/patched"] = result["unpatched"] / result["patched"]
    if "gpu_view" in result:
        ratios["gpu_view/upstream"] = result["gpu_view"] / result["upstream"]
    report: dict[str, Any] = {
        "megatron_core": core_version(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "device": str(device),
        "ns_per_call": {name: round(value, 1) for name, value in result.items()},
        "ratios": {name: round(value, 2) for name, value in ratios.items()},
    }
    if options.json:
        print(json.dumps(report))
    else:
        print("{megatron_core}, Python {python}, torch {torch}, {device}".format(**report))
        for name, value in {**report["ns_per_call"], **report["ratios"]}.items():
            print(f"  {name:20}{value:10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
