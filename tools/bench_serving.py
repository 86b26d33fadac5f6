"""Time a whole serving run of the real engine, with and without patches.

    python tools/bench_serving.py --rate 20 --json 0.18.2.json

Requests arrive by a Poisson process of ``--rate`` requests a second, or all at once (``--rate 0``).
Lengths of prompts and of what is generated are lognormal, around the medians ``--prompt`` and
``--tokens``, and at most four times these; all prompts begin with the same ``--shared-prefix``
tokens. Everything is drawn from ``--seed``, and alike for all selections of patches and all runs.
Prompts are read in chunks beside the decoding, and prefixes are cached, where the release can.

The selections (``--select``, values of ``MEGATRON_PATCH``) take turns with whole runs, on one
engine that is reset before each. The engine is built, and its CUDA graphs are captured, with the
patches of ``--build-with``. Time to the first token and to the last one count from the arrival of a
request, whether the engine has room for it by then or not. A token is there when the step that made
it has returned.

Generation is greedy. With ``--rate 0`` each run makes the same steps, so a patch that changes a
token is a failure (exit status 1), unless runs of the first selection differ among themselves.
With another rate the clock decides which requests share a step; kernels, and the rounding of
logits, depend on that, so tokens may differ without any patch. In both cases the JSON says for each
run how many requests got other tokens than in the first run of the first selection.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# A script's own directory is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

from megatron_patch import testing
from megatron_patch.testing.decoding import add_request, has_work, stepper
from megatron_patch.testing.event_loop import settle
from megatron_patch.testing.releases import context_parameters, engine_class, parameters_of
from tools import benchmarking, same_bits

SELECTIONS = ("none", "all")

MOST = 4  # times the median: no prompt and no output is longer


@dataclass(frozen=True)
class Arrival:
    """A request, and when it arrives: seconds after the beginning of the run."""

    request: testing.Request
    seconds: float


@dataclass
class Followed:
    """What became of a request in a run; times in seconds after its beginning."""

    arrived: float
    future: Any
    record: Any
    token_times: list[float] = field(default_factory=list)

    @property
    def parts(self) -> Sequence[Any]:
        """What the engine made of the request: several, one after the other, if it was evicted."""
        return getattr(self.record, "requests", None) or (self.record,)

    @property
    def generated(self) -> tuple[int, ...]:
        return tuple(token for part in self.parts for token in part.generated_tokens)

    def note(self, now: float) -> None:
        """Note ``now`` as the time of each token that is new."""
        count = sum(len(part.generated_tokens) for part in self.parts)
        self.token_times.extend([now] * (count - len(self.token_times)))


@dataclass(frozen=True)
class Run:
    """What one run of all requests gave; times in seconds."""

    seconds: float
    steps: int
    first_token: tuple[float, ...]
    between_tokens: tuple[float, ...]
    last_token: tuple[float, ...]
    tokens: tuple[tuple[int, ...], ...]


def arrivals(options: argparse.Namespace) -> list[Arrival]:
    """The requests of each run, in the order in which they arrive."""
    draw = np.random.default_rng(options.seed)
    count = options.requests

    def lengths(median: int) -> list[int]:
        drawn = draw.lognormal(np.log(median), options.sigma, count)
        return [int(length) for length in np.clip(np.rint(drawn), 1, MOST * median)]

    prompts, outputs = lengths(options.prompt), lengths(options.tokens)
    gaps = draw.exponential(1 / options.rate, count) if options.rate else np.zeros(count)
    prefix = draw.integers(1, options.vocabulary, options.shared_prefix).tolist()
    return [
        Arrival(
            testing.Request(
                (*prefix, *draw.integers(1, options.vocabulary, prompt).tolist()), output
            ),
            float(moment),
        )
        for prompt, output, moment in zip(prompts, outputs, np.cumsum(gaps), strict=True)
    ]


def spec_of(
    options: argparse.Namespace, device: Any, load: Sequence[Arrival]
) -> testing.EngineSpec:
    """What the engine is like; its KV cache holds as many requests as a step takes."""
    known = {*context_parameters(), *parameters_of(engine_class())}
    lengths = [len(item.request.prompt) + item.request.num_tokens for item in load]
    prompts = [len(item.request.prompt) for item in load]
    chunked = "enable_chunked_prefill" in known
    at_once = -(-min(options.at_once, options.requests) // 4) * 4
    blocks = sorted((-(-length // options.block_size) + 1 for length in lengths), reverse=True)
    step = options.prefill_tokens if chunked else max(options.prefill_tokens, max(prompts))
    settings: dict[str, Any] = {}
    if options.mixed_graphs:
        settings["use_cuda_graphs_for_non_decode_steps"] = True
    return benchmarking.sized_spec(
        options,
        device,
        blocks=sum(blocks[:at_once]),
        max_sequence_length=max(512, max(lengths)),
        max_requests=at_once,
        max_tokens=-(-(step + at_once) // 64) * 64,
        enable_chunked_prefill=True if chunked else None,
        enable_prefix_caching="enable_prefix_caching" in known,
        inference=settings,
    )


def serve(engine: Any, load: Sequence[Arrival]) -> Run:
    """Serve all of ``load`` and wait for its last token.

    Raises:
        RuntimeError: the engine failed a request.
    """
    engine.reset()
    make_step = stepper(engine, {})
    followed: list[Followed] = []
    running: list[Followed] = []
    steps, begin = 0, time.perf_counter()
    while len(followed) < len(load) or running:
        now = time.perf_counter() - begin
        while len(followed) < len(load) and load[len(followed)].seconds <= now:
            arrival = load[len(followed)]
            future = add_request(engine, arrival.request, {})
            entry = engine.requests[next(reversed(engine.requests))]
            record = getattr(entry, "record", entry)
            followed.append(Followed(arrival.seconds, future, record))
            running.append(followed[-1])
        if has_work(engine):
            make_step()
            steps += 1
            now = time.perf_counter() - begin
            for item in running:
                item.note(now)
            running = [item for item in running if not item.future.done()]
        elif len(followed) < len(load):
            time.sleep(max(0.0, load[len(followed)].seconds - now))
    settle(engine._loop)
    for item, arrival in zip(followed, load, strict=True):
        if len(item.generated) != arrival.request.num_tokens:
            raise RuntimeError(f"the engine ended {arrival.request} with {item.record}")
    return Run(
        seconds=max(item.token_times[-1] for item in followed) - load[0].seconds,
        steps=steps,
        first_token=tuple(item.token_times[0] - item.arrived for item in followed),
        between_tokens=tuple(float(gap) for item in followed for gap in np.diff(item.token_times)),
        last_token=tuple(item.token_times[-1] - item.arrived for item in followed),
        tokens=tuple(item.generated for item in followed),
    )


def differing(one: Run, other: Run) -> int:
    """How many requests have other tokens in one run than in the other."""
    return sum(a != b for a, b in zip(one.tokens, other.tokens, strict=True))


def latency(samples: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds, of ``samples`` in seconds."""
    p50, p99 = (np.quantile(samples, [0.5, 0.99]) * 1e3).tolist()
    return {"p50": p50, "p99": p99}


def figures(runs: Sequence[Run], first: Run) -> dict[str, Any]:
    """What ``runs`` of one selection say, all samples of them together."""
    rates = [sum(map(len, run.tokens)) / run.seconds for run in runs]
    return {
        "tokens_per_second": {"median": statistics.median(rates), "each": rates},
        "seconds": [run.seconds for run in runs],
        "steps": [run.steps for run in runs],
        "first_token_ms": latency([value for run in runs for value in run.first_token]),
        "between_tokens_ms": latency([value for run in runs for value in run.between_tokens]),
        "last_token_ms": latency([value for run in runs for value in run.last_token]),
        "differing_requests": [differing(run, first) for run in runs],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, as they are written to JSON."""
    device = testing.start()
    same_bits.choose()
    load = arrivals(options)
    spec = spec_of(options, device, load)
    engine, made = benchmarking.measured_build(spec, options.build_with)
    applied: dict[str, list[str]] = {}
    for name in options.select:
        with benchmarking.selected(name) as ids:
            applied[name] = ids
    runs: dict[str, list[Run]] = {name: [] for name in options.select}
    with benchmarking.alternating(options.select) as use:
        use(options.select[0])
        # Not timed: it pays for what is slow only once.
        serve(engine, [Arrival(item.request, 0.0) for item in load])
        for number in range(options.repeats):
            for name in benchmarking.in_turn(options.select, number):
                use(name)
                runs[name].append(serve(engine, load))
    first = runs[options.select[0]][0]
    return {
        **benchmarking.machine(device),
        **made,
        **benchmarking.provenance("bench_serving.py", options),
        "load": {
            "requests": len(load),
            "prompt_tokens": sum(len(item.request.prompt) for item in load),
            "output_tokens": sum(item.request.num_tokens for item in load),
            "last_arrival_s": load[-1].seconds,
            "chunked_prefill": bool(spec.enable_chunked_prefill),
            "prefix_caching": spec.enable_prefix_caching,
        },
        "selections": {
            name: {"applied": applied[name], **figures(each, first)} for name, each in runs.items()
        },
    }


def report(result: dict[str, Any]) -> str:
    """The figures for people."""
    load = result["load"]
    lines = [
        f"megatron-core {result['megatron_core']} on {result['device']}, "
        f"attention: {result['attention']}; {load['requests']} requests, {load['prompt_tokens']} "
        f"tokens of prompts, {load['output_tokens']} generated"
    ]
    for name, values in result["selections"].items():
        parts = [f"  {name}: {values['tokens_per_second']['median']:.0f} tokens/s"]
        for title in ("first_token", "between_tokens", "last_token"):
            figure = values[f"{title}_ms"]
            words = title.replace("_", " ")
            parts.append(f"{words} {figure['p50']:.1f} ms (p99 {figure['p99']:.1f})")
        parts.append(f"other tokens in {values['differing_requests']} requests")
        lines.append(", ".join(parts))
    return "\n".join(lines)


def failed(result: dict[str, Any], rate: float) -> bool:
    """Whether a selection changed tokens of runs that make the same steps."""
    mine, *others = (values["differing_requests"] for values in result["selections"].values())
    return not rate and not any(mine) and any(any(counts) for counts in others)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    benchmarking.add_model_options(parser)
    parser.add_argument("--requests", type=int, default=128, help="in each run")
    parser.add_argument("--at-once", type=int, default=64, help="requests in one step at most")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: all at once")
    parser.add_argument("--prompt", type=int, default=256, help="median of a prompt's own tokens")
    parser.add_argument("--tokens", type=int, default=64, help="median of the tokens generated")
    parser.add_argument(
        "--sigma",
        type=float,
        default=0.6,
        help="standard deviation of the logarithm of both lengths",
    )
    parser.add_argument(
        "--shared-prefix", type=int, default=512, help="tokens that all prompts begin with"
    )
    parser.add_argument(
        "--prefill-tokens", type=int, default=2048, help="tokens of prompts in one step"
    )
    parser.add_argument(
        "--mixed-graphs", action="store_true", help="CUDA graphs for steps with prompts too"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each selection")
    benchmarking.add_selection_options(parser, SELECTIONS)
    options = parser.parse_args(arguments)
    options.select = options.select or [*SELECTIONS]
    for name in ("requests", "at_once", "prompt", "tokens", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    try:
        result = measure(options)
    except testing.UnsupportedError as error:
        parser.error(str(error))
    print(report(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(failed(result, options.rate))


if __name__ == "__main__":
    sys.exit(main())
