"""Say which functions of Megatron the host spends a decode step in.

    python tools/profile_decode.py --patches none

Runs the engine of ``bench_decode.py`` under Python's own profiler and lists functions by the time
spent in each without what it calls; operators of torch count for the function that calls them. The
profiler costs time with every call: the step is timed without it too, and the shares say more than
the sums. A run without a profiler says when the calls of a step begin and how long they take; see
``step_timeline.py``. On a CUDA device another run, under torch's profiler, counts the calls of the
CUDA runtime, which is where the host launches work and waits for it, and what the GPU then does:
its kernels and copies, and how long it was idle before each of them.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

# A script's own directory is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

from megatron_patch import testing
from tools import benchmarking, step_timeline

ROOT = Path(__file__).parents[1]
#: Microseconds; calls that take less time are not printed.
LEAST = 5
TABLES = ("functions", "runtime", "gpu", "idle_before")


def place(file: str) -> str:
    """``file`` without what is above its package, or above these tools."""
    if file.startswith(f"{ROOT}/tools/"):
        return file.removeprefix(f"{ROOT}/")
    packages = ("megatron/", "torch/", "megatron_patch/")
    start = max(file.rfind(f"/{package}") for package in packages)
    return file.rpartition("/site-packages/")[2] if start < 0 else file[start + 1 :]


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


#: A name, and when it began and ended, in microseconds.
Span = tuple[str, float, float]


def per_step(spans: Iterable[Span], steps: int) -> list[dict[str, Any]]:
    """Calls and microseconds per step of each name, most time first."""
    spent: dict[str, list[float]] = defaultdict(list)
    for name, start, end in spans:
        spent[name].append(end - start)
    rows = [
        {"function": name, "calls": len(times) / steps, "own_us": sum(times) / steps}
        for name, times in spent.items()
    ]
    return sorted(rows, key=lambda row: -row["own_us"])


def idle(work: Iterable[Span]) -> list[Span]:
    """The times in which the GPU does nothing, each by the name of what it does next."""
    spans, end = [], None
    for name, start, stop in sorted(work, key=lambda span: span[1:]):
        if end is not None and start > end:
            spans.append((name, end, start))
        end = stop if end is None else max(end, stop)
    return spans


def cuda_tables(engine: Any, requests: Sequence[testing.Request]) -> dict[str, Any]:
    """Of a decode step: the calls of the CUDA runtime, what the GPU does, and when it is idle."""
    from torch.autograd import DeviceType

    events, steps = benchmarking.cuda_events(engine, requests)
    calls, work = [], []
    for event in events:
        span = (event.name, event.time_range.start, event.time_range.end)
        if event.device_type == DeviceType.CUDA:
            work.append(span)
        elif event.name.startswith("cuda"):
            calls.append(span)
    return {
        "runtime": per_step(calls, steps),
        "gpu": per_step(work, steps),
        "idle_before": per_step(idle(work), steps),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    benchmarking.add_engine_options(parser)
    parser.add_argument("--patches", default="all", help="a value of MEGATRON_PATCH; default: all")
    parser.add_argument("--rows", type=int, default=30, help="how many functions to print")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of them there")
    parser.add_argument("--commit", help="default: that of the working tree")
    options = parser.parse_args(arguments)

    device = testing.start()
    engine, requests = benchmarking.build(options, device)
    with benchmarking.selected(options.patches):
        benchmarking.decode_steps(engine, requests)
        step = statistics.median(benchmarking.decode_steps(engine, requests))
        result = {
            **benchmarking.machine(device),
            **benchmarking.provenance("profile_decode.py", options),
            "patches": options.patches,
            "step_us": step,
            "timeline": step_timeline.timeline(engine, requests),
            "functions": functions(engine, requests),
            **(
                cuda_tables(engine, requests)
                if device.type == "cuda"
                else {"runtime": [], "gpu": [], "idle_before": []}
            ),
        }
    print(
        f"megatron-core {result['megatron_core']} on {result['device']}, patches "
        f"{options.patches}: {step:.0f} us a step without a profiler"
    )
    line = result["timeline"]
    print("\ntimeline: us from the beginning of the step, us, calls without a profiler")
    for row in line["calls"]:
        if row["us"] >= LEAST:
            print(f"{row['begins_us']:9.1f} {row['us']:9.1f}  {row['function']} {row['nth']}")
    if line["host_us"] is not None:
        print(f"{line['host_us']:.0f} us from the longest wait to the next launch of a graph")
    for title in TABLES:
        print(f"\n{title}: own us a step, with what they call, calls a step")
        for row in result[title][: options.rows]:
            print(
                f"{row['own_us']:9.1f} {row.get('total_us', row['own_us']):9.1f} "
                f"{row['calls']:8.1f}  {row['function'][:100]}"
            )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
