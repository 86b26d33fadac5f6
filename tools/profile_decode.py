"""Say which functions of Megatron the host spends a decode step in.

    python tools/profile_decode.py --patches none

Runs the engine of ``bench_decode.py`` under Python's own profiler and lists functions by the time
spent in each without what it calls; operators of torch count for the function that calls them. The
profiler costs time with every call: the step is timed without it too, and the shares say more than
the sums. On a CUDA device a second run, under torch's profiler, counts the calls of the CUDA
runtime, which is where the host launches work and waits for it.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import CodeType
from typing import Any

# A script's own directory is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

from megatron_patch import testing
from tools import benchmarking


def place(file: str) -> str:
    """``file`` without what is above its package."""
    packages = ("megatron/", "torch/", "megatron_patch/")
    start = max(file.rfind(f"/{package}") for package in packages)
    return file if start < 0 else file[start + 1 :]


def functions(engine: Any, requests: Sequence[testing.Request]) -> list[dict[str, Any]]:
    """Calls and microseconds per decode step of each function, most time of its own first."""
    profiler = cProfile.Profile(builtins=False)
    steps = benchmarking.steps_after_warm_up(engine, requests, profiler.enable, profiler.disable)
    rows = [
        {
            "function": f"{place(entry.code.co_filename)}:"
            f"{entry.code.co_firstlineno} {entry.code.co_name}",
            "calls": entry.callcount / steps,
            "own_us": entry.inlinetime * 1e6 / steps,
            "total_us": entry.totaltime * 1e6 / steps,
        }
        for entry in profiler.getstats()
        if isinstance(entry.code, CodeType)  # else a function in C, of which there are few
    ]
    return sorted(rows, key=lambda row: -row["own_us"])


def runtime_calls(engine: Any, requests: Sequence[testing.Request]) -> list[dict[str, Any]]:
    """Calls and microseconds per decode step of each function of the CUDA runtime."""
    events, steps = benchmarking.cuda_events(engine, requests)
    spent: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.name.startswith("cuda"):
            spent[event.name].append(event.time_range.elapsed_us())
    rows = [
        {"function": name, "calls": len(times) / steps, "own_us": sum(times) / steps}
        for name, times in spent.items()
    ]
    return sorted(rows, key=lambda row: -row["own_us"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    benchmarking.add_engine_options(parser)
    parser.add_argument("--patches", default="all", help="a value of MEGATRON_PATCH; default: all")
    parser.add_argument("--rows", type=int, default=30, help="how many functions to print")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of them there")
    options = parser.parse_args(arguments)

    device = testing.start()
    engine, requests = benchmarking.build(options, device)
    with benchmarking.selected(options.patches):
        benchmarking.decode_steps(engine, requests)
        step = statistics.median(benchmarking.decode_steps(engine, requests))
        result = {
            **benchmarking.machine(device),
            "patches": options.patches,
            "step_us": step,
            "functions": functions(engine, requests),
            "runtime": runtime_calls(engine, requests) if device.type == "cuda" else [],
        }
    print(
        f"megatron-core {result['megatron_core']} on {result['device']}, patches "
        f"{options.patches}: {step:.0f} us a step without a profiler"
    )
    for title in ("functions", "runtime"):
        print(f"\n{title}: own us a step, with what they call, calls a step")
        for row in result[title][: options.rows]:
            print(
                f"{row['own_us']:9.1f} {row.get('total_us', row['own_us']):9.1f} "
                f"{row['calls']:8.1f}  {row['function']}"
            )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
