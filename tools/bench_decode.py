"""Time the decode steps of the real engine, with and without patches.

    python tools/bench_decode.py --graph-scope layer --json 0.17.1.json

Runs on the installed megatron-core, on a CUDA device if there is one. The selections of patches
(``--select``, values of ``MEGATRON_PATCH``) alternate within one process, on one engine, so that
what changes over minutes meets all of them alike. The engine is built, and its CUDA graphs are
captured, with the patches of ``--build-with``. A step is timed on the host, from the call of the
engine's step until it returns, which is when the tokens have been read back; steps that read
prompts, the first ones after these, and those in which requests end are left out. A step makes one
token of each request, so its length is also the time between two tokens of a request.

Each round gives one median per selection. The difference to the first selection is taken between
the medians of each round; reported is its median over the rounds, with a bootstrap interval over
the rounds, because the steps of one round are not independent. Two runs of their own give the time
that the GPU is busy, by the profiler, and that of the getter within steps, on the host.

Tokens and logits of all selections have to be equal bit for bit; otherwise the exit status is 1.
Logits are compared by their SHA-256 digests, one a step. On a CPU the stand-ins for CUDA take a
part of the time: compare nothing but selections there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# A script's own directory is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

from megatron_patch import testing
from tools import attention_used, benchmarking, same_bits

GETTER = "current_input_and_position_ids"
SELECTIONS = ("none", "input-position-view-cache", "all")


def interval(differences: Sequence[float], resamples: int = 10_000) -> tuple[float, float]:
    """95% bootstrap interval of the median: its lower and its upper end."""
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


def gpu_busy(engine: Any, requests: Sequence[testing.Request]) -> tuple[float, list[str]]:
    """Microseconds per decode step in which the GPU does anything, and attention's kernels."""
    from torch.autograd import DeviceType

    seen, steps = benchmarking.cuda_events(engine, requests)
    events = [event for event in seen if event.device_type == DeviceType.CUDA]
    busy = busy_microseconds([(e.time_range.start, e.time_range.end) for e in events])
    return busy / steps, attention_used.kernels(event.name for event in events)


@dataclass(frozen=True)
class Outputs:
    """What a run gave: the tokens of each request, and a digest of each step's logits."""

    tokens: tuple[tuple[int, ...], ...]
    digests: tuple[str, ...]


def digest(logits: Any, rows: int) -> str:
    """SHA-256 of the first ``rows`` rows of ``logits``, (1, at least so many, vocabulary).

    Those behind them are padding and mean nothing.
    """
    import torch

    real = logits.detach()[:, :rows].contiguous().view(torch.uint8).cpu()
    return hashlib.sha256(real.numpy().data).hexdigest()


def outputs(engine: Any, requests: Sequence[testing.Request]) -> Outputs:
    """Decode, and keep of each step's logits as much as it takes to compare them."""
    digests: list[str] = []
    context = engine.context

    def note(module: Any, arguments: Any, logits: Any) -> None:
        digests.append(digest(logits, context.total_request_count - context.paused_request_count))

    handle = engine.controller.inference_wrapped_model.model.register_forward_hook(note)
    try:
        decoded = testing.decode(engine, requests, capture_logits=False)
    finally:
        handle.remove()
    return Outputs(decoded.tokens, tuple(digests))


def token_figures(steps: Sequence[float], requests: int) -> dict[str, Any]:
    """Throughput and latency that steps of so many microseconds mean for ``requests`` requests."""
    p50, p99 = np.quantile(steps, [0.5, 0.99]).tolist()
    return {
        "tokens_per_second": requests * 1e6 / statistics.fmean(steps),
        "token_latency_us": {"p50": p50, "p99": p99},
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, as they are written to JSON."""
    import torch

    device = benchmarking.start(options.tensor_parallel)
    on_cuda = device.type == "cuda"
    same_bits.choose()
    engine, made = benchmarking.measured_build(
        benchmarking.spec_of(options, device), options.build_with
    )
    requests = benchmarking.batch(options)
    steps: dict[str, list[list[float]]] = {name: [] for name in options.select}
    results: dict[str, dict[str, Any]] = {}
    decoded: dict[str, Outputs] = {}
    for name in options.select:
        with benchmarking.selected(name) as applied:
            if on_cuda:
                torch.cuda.reset_peak_memory_stats()
            with benchmarking.timed(engine.context, GETTER) as calls:
                benchmarking.decode_steps(engine, requests)
            peak = torch.cuda.max_memory_allocated() if on_cuda else None
            decoded[name] = outputs(engine, requests)
            busy, kernels = gpu_busy(engine, requests) if on_cuda else (None, [])
            results[name] = {
                "applied": applied,
                "getter_us": statistics.median(calls),
                "gpu_busy_us": busy,
                "attention_kernels": kernels,
                "peak_bytes": peak,
            }
    first = options.select[0]
    with benchmarking.alternating(options.select) as use:
        for number in range(options.rounds):
            for name in benchmarking.in_turn(options.select, number):
                use(name)
                steps[name].append(benchmarking.decode_steps(engine, requests))
    for name, rounds in steps.items():
        together = [sample for samples in rounds for sample in samples]
        p10, median, p90 = np.quantile(together, [0.1, 0.5, 0.9]).tolist()
        results[name]["step_us"] = {"median": median, "p10": p10, "p90": p90}
        results[name]["steps"] = len(together)
        results[name].update(token_figures(together, options.requests))
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
        results[name]["equal_outputs"] = decoded[name] == decoded[first]
    with benchmarking.selected(first):
        again = outputs(engine, requests)
    return {
        **benchmarking.machine(device),
        **made,
        **benchmarking.provenance("bench_decode.py", options),
        "reproducible": decoded[first] == again,
        "selections": results,
    }


def report(result: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"megatron-core {result['megatron_core']} on {result['device']}, "
        f"torch {result['torch']}, Python {result['python']}, attention: {result['attention']}"
    ]
    if result["capture"] is not None:
        capture = result["capture"]
        lines.append(
            f"  CUDA graphs captured in {capture['seconds']:.1f} s, "
            f"{capture['reserved_bytes'] / 2**20:.0f} MiB reserved for them"
        )
    for name, values in result["selections"].items():
        step = values["step_us"]
        line = f"  {name}: {step['median']:.0f} us a step ({step['p10']:.0f}-{step['p90']:.0f})"
        if values["gpu_busy_us"] is not None:
            busy = values["gpu_busy_us"]
            line += f", GPU busy {busy:.0f} us, host alone {1 - busy / step['median']:.0%}"
        line += f", {values['tokens_per_second']:.0f} tokens/s"
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
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="RANKS",
        help="ranks that share the model; start as many with torchrun. The first one reports",
    )
    parser.add_argument(
        "--rounds", type=int, default=15, help="turns of each selection, at least 2"
    )
    benchmarking.add_selection_options(parser, SELECTIONS)
    options = parser.parse_args(arguments)
    options.select = options.select or [*SELECTIONS]
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    if options.tokens < benchmarking.WARM_UP + 4:
        parser.error(
            f"--tokens must be at least {benchmarking.WARM_UP + 4}: not all steps are timed"
        )
    try:
        result = measure(options)
    except testing.UnsupportedError as error:
        parser.error(str(error))
    first_rank = int(os.environ.get("RANK", "0")) == 0
    if first_rank:
        print(report(result))
    if first_rank and options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(not all(values["equal_outputs"] for values in result["selections"].values()))


if __name__ == "__main__":
    sys.exit(main())
