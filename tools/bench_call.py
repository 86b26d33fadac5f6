"""Time one method of the context within decode steps, with and without one patch.

    python tools/bench_call.py padded-block-table initialize_attention_state

The runs with and without it alternate within one process, on one engine: the difference of two
whole steps would drown in their noise. Runs on a CUDA device if there is one; the times are those
of the host.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

# A script's own directory is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

from megatron_patch import testing
from tools import benchmarking


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patch", help="id of a patch that is applied to the installed release")
    parser.add_argument("method", help="name of a method of DynamicInferenceContext")
    benchmarking.add_engine_options(parser)
    parser.add_argument("--rounds", type=int, default=10, help="each with and without; default: 10")
    options = parser.parse_args()

    device = testing.start()
    engine, requests = benchmarking.build(options, device)
    samples: dict[str, list[float]] = {"none": [], options.patch: []}
    steps: list[float] = []
    testing.decode(engine, requests, capture_logits=False)
    for number in range(options.rounds):
        for selection in sorted(samples, reverse=bool(number % 2)):
            with benchmarking.selected(selection) as applied:
                if applied != [selection] * (selection != "none"):
                    wanted = "no patch" if selection == "none" else f"{selection} alone"
                    parser.error(
                        f"expected {wanted} to be applied, but applied are: "
                        f"{', '.join(applied) or 'none'}; megatron-patch check says why"
                    )
                with benchmarking.timed(engine.context, options.method) as calls:
                    decoded = testing.decode(engine, requests, capture_logits=False)
            samples[selection] += calls
            steps += decoded.step_seconds
    without, with_patch = (statistics.median(samples[s]) for s in ("none", options.patch))
    per_step = len(samples["none"]) * 2 / len(steps)
    step = statistics.median(steps) * 1e6
    print(f"megatron-core {benchmarking.machine(device)['megatron_core']} on {device}")
    print(
        f"  {options.method}: {without:.1f} us a call without, {with_patch:.1f} with "
        f"{options.patch}; {per_step:.2f} calls a step of {step:.0f} us: "
        f"{(with_patch - without) * per_step / step:+.1%}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
