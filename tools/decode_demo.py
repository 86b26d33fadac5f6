"""Decode a batch with Megatron's own dynamic engine, unpatched and patched, side by side.

Runs on a CUDA device if there is one, else on the CPU with stand-ins for CUDA and flash-attn.
Exit status 1 if a token differs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import timeit
from dataclasses import dataclass
from typing import Any

import megatron_patch
from megatron_patch import testing
from megatron_patch.testing.version import core_version


@dataclass(frozen=True)
class Run:
    """One decode, and the getter timed on the context that it left."""

    decoded: testing.Decoded
    getter_ns: float

    @property
    def step_us(self) -> float:
        """Median wall-clock time of a step, microseconds."""
        return statistics.median(self.decoded.step_seconds) * 1e6


def progress(text: str) -> None:
    """One line on stderr, written over, so that stdout holds the results only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def decode(label: str, spec: testing.EngineSpec, requests: list[testing.Request]) -> Run:
    """Run the batch through a new engine."""
    progress(f"{label}: building the engine")
    engine = testing.build_engine(spec)
    last = max(r.arrival_step + r.num_tokens for r in requests)

    def on_step(_: Any, step: int) -> None:
        progress(f"{label}: step {step + 1} of about {last}")

    decoded = testing.decode(engine, requests, on_step=on_step, capture_logits=False)
    progress(f"{label}: timing the getter")
    context = engine.context
    context.padded_active_token_count = 64
    timer = timeit.Timer("f()", globals={"f": context.current_input_and_position_ids})
    loops = 20_000
    getter_ns = statistics.median(timer.repeat(repeat=7, number=loops)) / loops * 1e9
    progress("")
    return Run(decoded, getter_ns)


def main() -> int:
    """Print the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=24, help="tokens for each request")
    parser.add_argument("--requests", type=int, default=6)
    options = parser.parse_args()

    device = testing.start()
    on_cuda = device.type == "cuda"
    spec = testing.EngineSpec(dtype="bfloat16" if on_cuda else "float32")
    requests = [
        testing.Request(tuple(range(1, 5 + 3 * n)), options.tokens - n, arrival_step=n // 2)
        for n in range(options.requests)
    ]
    decode("warm-up", spec, requests[:1])
    patched = decode("patched", spec, requests)
    states = megatron_patch.status()
    megatron_patch.uninstall()
    unpatched = decode("unpatched", spec, requests)
    megatron_patch.install()

    print(f"megatron-core {core_version()} on {device}")
    for entry in states:
        print(f"  {entry.id}: {entry.state} ({entry.reason})")
    print(f"{'':24}{'unpatched':>12}{'patched':>12}")
    print(f"{'getter, ns per call':24}{unpatched.getter_ns:12.0f}{patched.getter_ns:12.0f}")
    print(f"{'step, median us':24}{unpatched.step_us:12.0f}{patched.step_us:12.0f}")
    print(f"{'steps':24}{unpatched.decoded.steps:12}{patched.decoded.steps:12}")
    if not on_cuda:
        print("(times on the CPU include the stand-ins for CUDA: see tools/bench_getter.py)")
    same = unpatched.decoded.tokens == patched.decoded.tokens
    count = sum(len(tokens) for tokens in patched.decoded.tokens)
    print(f"tokens: {count}, {'all equal' if same else 'DIFFERENT'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
