"""Time one method of the context within decode steps, with and without one patch.

    python tools/bench_call.py padded-block-table initialize_attention_state

The two alternate within one process, on one engine: the difference of two whole steps would drown
in their noise. On a CUDA device if there is one; the time is the host's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import statistics
import sys
import time
from typing import Any

import megatron_patch
from megatron_patch import testing


def timed(context: Any, method: str, samples: list[float]) -> Any:
    """The bound method, noting microseconds."""
    function = getattr(type(context), method)

    def call(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        result = function(context, *arguments, **named)
        samples.append((time.perf_counter() - begin) * 1e6)
        return result

    return call


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patch", help="id of a patch that is applied to the installed release")
    parser.add_argument("method", help="name of a method of DynamicInferenceContext")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--requests", type=int, default=13)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()

    device = testing.start()
    on_cuda = device.type == "cuda"
    engine = testing.build_engine(
        testing.EngineSpec(
            num_layers=options.layers,
            hidden_size=options.hidden,
            num_attention_heads=16,
            vocab_size=8192,
            dtype="bfloat16" if on_cuda else "float32",
            max_sequence_length=512,
            block_size_tokens=64,
            max_requests=16,
            max_tokens=1024,
            num_cuda_graphs=4,
        )
    )
    states = {entry.id: entry.state for entry in megatron_patch.status()}
    if states.get(options.patch) is not megatron_patch.State.APPLIED:
        parser.error(f"{options.patch} is not applied here: {states}")
    requests = [
        testing.Request(tuple(range(1 + n, 33 + n)), options.tokens)
        for n in range(options.requests)
    ]
    samples: dict[str, list[float]] = {"none": [], options.patch: []}
    steps: list[float] = []
    testing.decode(engine, requests, capture_logits=False)
    for number in range(options.rounds):
        for selection in sorted(samples, reverse=bool(number % 2)):
            os.environ["MEGATRON_PATCH"] = selection
            megatron_patch.install()
            # On the instance: the patched class stays as a user has it.
            vars(engine.context)[options.method] = timed(
                engine.context, options.method, samples[selection]
            )
            decoded = testing.decode(engine, requests, capture_logits=False)
            del vars(engine.context)[options.method]
            steps += decoded.step_seconds
    without, with_patch = (statistics.median(samples[s]) for s in ("none", options.patch))
    calls = len(samples["none"]) * 2 / len(steps)
    step = statistics.median(steps) * 1e6
    print(f"megatron-core {importlib.metadata.version('megatron-core')} on {device}")
    print(
        f"  {options.method}: {without:.1f} us a call without, {with_patch:.1f} with "
        f"{options.patch}; {calls:.2f} calls a step of {step:.0f} us: "
        f"{(with_patch - without) * calls / step:+.1%}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
