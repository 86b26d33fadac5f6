"""Time the decode steps of the real engine, with and without patches.

    python tools/bench_decode.py --json 0.17.1.json

Runs on the installed megatron-core, on a CUDA device if there is one. The selections of patches
(``--select``, values of ``MEGATRON_PATCH``) alternate within one process, on one engine, so that
what changes over minutes meets all of them alike. A step is timed on the host, from the call of
the engine's step until it returns, which is when the tokens have been read back; the first steps,
which read the prompts, and the last are left out.

Each round gives one median per selection. The difference to the first selection is the median over
the rounds of the differences of these, with a bootstrap interval over the rounds: the steps of one
round are not independent. The time that the GPU is busy comes from the profiler in a run of its
own, as does the time of the getter within steps.

Tokens and logits of all selections have to be equal bit for bit; otherwise the exit status is 1.
On a CPU the stand-ins for CUDA take a part of the time: compare nothing but selections there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

# A script's own directory is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

from megatron_patch import testing
from tools import benchmarking

GETTER = "current_input_and_position_ids"
VIEW_CACHE = "input-position-view-cache"


def interval(differences: Sequence[float], resamples: int = 10_000) -> tuple[float, float]:
    """95% bootstrap interval of the median."""
    values = np.asarray(differences)
    draws = np.random.default_rng(0).choice(values, (resamples, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def busy_microseconds(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of ``spans``: streams overlap."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def gpu_busy(engine: Any, requests: Sequence[testing.Request]) -> float:
    """Microseconds per decode step in which the GPU does anything."""
    from torch.autograd import DeviceType

    seen, steps = benchmarking.cuda_events(engine, requests)
    events = [event for event in seen if event.device_type == DeviceType.CUDA]
    return busy_microseconds([(e.time_range.start, e.time_range.end) for e in events]) / steps


def on_host(decoded: testing.Decoded) -> testing.Decoded:
    """With its logits in the host's memory: they are not to count as the engine's."""
    return replace(decoded, logits=tuple(logits.cpu() for logits in decoded.logits))


def equal(one: testing.Decoded, other: testing.Decoded) -> bool:
    """Whether tokens and logits are the same bit for bit. Rows for padding mean nothing."""
    rows = len(one.tokens)
    return (
        one.tokens == other.tokens
        and len(one.logits) == len(other.logits)
        and all(
            a[:, :rows].equal(b[:, :rows]) for a, b in zip(one.logits, other.logits, strict=True)
        )
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, as they are written to JSON."""
    import torch

    device = testing.start()
    on_cuda = device.type == "cuda"
    # Of several kernels for one operator, those that are the same bit for bit in each run.
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    engine, requests = benchmarking.build(options, device)
    steps: dict[str, list[list[float]]] = {name: [] for name in options.select}
    results: dict[str, dict[str, Any]] = {}
    decoded: dict[str, testing.Decoded] = {}
    for name in options.select:
        with benchmarking.selected(name) as applied:
            benchmarking.decode_steps(engine, requests)
            decoded[name] = on_host(testing.decode(engine, requests))
            with benchmarking.timed(engine.context, GETTER) as calls:
                benchmarking.decode_steps(engine, requests)
            results[name] = {
                "applied": applied,
                "getter_us": statistics.median(calls),
                "gpu_busy_us": gpu_busy(engine, requests) if on_cuda else None,
            }
            if on_cuda:
                torch.cuda.reset_peak_memory_stats()
            benchmarking.decode_steps(engine, requests)
            results[name]["peak_bytes"] = torch.cuda.max_memory_allocated() if on_cuda else None
    first = options.select[0]
    with benchmarking.alternating(options.select) as use:
        for number in range(options.rounds):
            for name in options.select if number % 2 == 0 else reversed(options.select):
                use(name)
                steps[name].append(benchmarking.decode_steps(engine, requests))
    for name, rounds in steps.items():
        together = [sample for samples in rounds for sample in samples]
        p10, median, p90 = np.quantile(together, [0.1, 0.5, 0.9]).tolist()
        results[name]["step_us"] = {"median": median, "p10": p10, "p90": p90}
        results[name]["steps"] = len(together)
        if name != first:
            differences = [
                statistics.median(mine) - statistics.median(its)
                for mine, its in zip(rounds, steps[first], strict=True)
            ]
            low, high = interval(differences)
            results[name]["difference_us"] = {
                "median": statistics.median(differences),
                "low": low,
                "high": high,
            }
        results[name]["equal_outputs"] = equal(decoded[name], decoded[first])
    with benchmarking.selected(first):
        again = on_host(testing.decode(engine, requests))
    return {
        **benchmarking.machine(device),
        "commit": options.commit or _commit(),
        "command": " ".join(["python", "tools/bench_decode.py", *sys.argv[1:]]),
        "options": {
            name: value
            for name, value in vars(options).items()
            if name not in ("json", "commit", "select")
        },
        "reproducible": equal(decoded[first], again),
        "selections": results,
    }


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def report(result: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"megatron-core {result['megatron_core']} on {result['device']}, "
        f"torch {result['torch']}, Python {result['python']}"
    ]
    for name, values in result["selections"].items():
        step = values["step_us"]
        line = f"  {name}: {step['median']:.0f} us a step ({step['p10']:.0f}-{step['p90']:.0f})"
        if values["gpu_busy_us"] is not None:
            busy = values["gpu_busy_us"]
            line += f", GPU busy {busy:.0f} us, host alone {1 - busy / step['median']:.0%}"
        line += f", getter {values['getter_us']:.2f} us"
        if values["peak_bytes"] is not None:
            line += f", peak {values['peak_bytes'] / 2**20:.0f} MiB"
        if "difference_us" in values:
            difference = values["difference_us"]
            line += (
                f"; {difference['median']:+.0f} us "
                f"[{difference['low']:+.0f}, {difference['high']:+.0f}]"
            )
        lines.append(line + ("" if values["equal_outputs"] else "; OUTPUTS DIFFER"))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    benchmarking.add_engine_options(parser)
    parser.add_argument("--rounds", type=int, default=15, help="of all selections, at least 2")
    parser.add_argument(
        "--select",
        action="append",
        metavar="PATCHES",
        help="a value of MEGATRON_PATCH; repeat it. The first is what the others are compared to. "
        f"Default: none, {VIEW_CACHE}, all",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--commit", help="default: that of the working tree")
    options = parser.parse_args(arguments)
    options.select = options.select or ["none", VIEW_CACHE, "all"]
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    if options.tokens < benchmarking.WARM_UP + 3:
        parser.error(
            f"--tokens must be at least {benchmarking.WARM_UP + 3}: not all steps are timed"
        )
    result = measure(options)
    print(report(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(not all(values["equal_outputs"] for values in result["selections"].values()))


if __name__ == "__main__":
    sys.exit(main())
