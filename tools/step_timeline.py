"""When things begin and end in a decode step: a clock around some calls, and no profiler.

A profiler costs time with each call, of Python or of CUDA, and most where there are many small
ones: the launch of a graph of all layers takes 15 us, and 400 us with the profiler of the CUDA
runtime. What is clocked here are a few calls of a step, so it takes nearly as long as without.
"""

from __future__ import annotations

import functools
import inspect
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple
from unittest import mock

from megatron_patch import testing
from tools import benchmarking

#: Methods of the engine, its context and its controller, where the release has them.
METHODS = (
    "step_modern",
    "async_forward",
    "async_bookkeep",
    "post_process_requests",
    "initialize_attention_state",
    "transfer_bookkeeping_to_gpu",
    "update_requests",
    "_dynamic_step_context_init",
    "_dynamic_step_forward_logits",
    "_dynamic_step_sample_logits",
    "_dynamic_step_context_bookkeeping",
)
#: Those of the model.
OF_MODEL = ("forward", "_preprocess", "_postprocess")
#: What may wait for the GPU.
WAITS = ("tolist", "item", "cpu", "synchronize")
#: What launches a graph.
LAUNCH = "replay"

#: How many runs there are.
RUNS = 5

#: The name of a call, and when it began and ended, in microseconds.
Call = tuple[str, float, float]


@contextmanager
def clocked(engine: Any) -> Iterator[list[Call]]:
    """Yield the list that the calls are put in as they end."""
    import torch

    calls: list[Call] = []
    model = engine.controller.inference_wrapped_model.model
    places = [
        *((type(part), METHODS) for part in (engine, engine.context, engine.controller)),
        (type(getattr(model, "module", model)), OF_MODEL),
        (torch.cuda.CUDAGraph, (LAUNCH,)),
        (torch.Tensor, WAITS),
        (torch.cuda.Event, WAITS),
        (torch.cuda.Stream, WAITS),
    ]
    with ExitStack() as stack:
        for owner, names in places:
            for name in names:
                function = getattr(owner, name, None)
                if callable(function):
                    # It puts the very function back, so that patches find their own again.
                    clock = mock.patch.object(owner, name, _with_clock(function, name, calls))
                    stack.enter_context(clock)
        yield calls


def _with_clock(function: Any, name: str, calls: list[Call]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return await function(*args, **kwargs)
            finally:
                calls.append((name, begin * 1e6, time.perf_counter() * 1e6))

    else:

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                calls.append((name, begin * 1e6, time.perf_counter() * 1e6))

    return call


def timeline(engine: Any, requests: Sequence[testing.Request]) -> dict[str, Any]:
    """Medians over the steps in which every request decodes, in microseconds.

    Of several runs it is the fastest: the clock rate of a host may change from one to the next.

    Returns:
        ``step_us``: how long a step takes with the clock; ``host_us``: from the end of the longest
        wait for the GPU to the next launch of a graph, in which the GPU has no layer to run (None
        where nothing is launched); ``calls``: in their order the ``function`` of each call, the
        ``nth`` of that name in its step that it is, when it begins after the step does, and how
        long it takes.
    """
    with clocked(engine) as calls:
        plain = testing.decode(engine, requests, capture_logits=False)
        first = benchmarking.prefill_steps(plain, requests) + benchmarking.WARM_UP
        # The last step finishes the requests.
        runs = [
            _run(engine, requests, calls)[first : requests[0].num_tokens - 2] for _ in range(RUNS)
        ]
    steps = min(runs, key=_step)
    return {
        "step_us": _step(steps),
        "host_us": _host([call for step in steps for call in step.calls]),
        "calls": _rows(steps),
    }


class Step(NamedTuple):
    """A step, in microseconds, and the calls that ended in it."""

    begin: float
    end: float
    calls: Sequence[Call]


def _run(engine: Any, requests: Sequence[testing.Request], calls: list[Call]) -> list[Step]:
    """All steps of a run but the last."""
    calls.clear()
    begun: list[tuple[float, int]] = []
    testing.decode(
        engine,
        requests,
        on_step=lambda *_: begun.append((time.perf_counter() * 1e6, len(calls))),
        capture_logits=False,
    )
    return [
        Step(begin, end, calls[index:until]) for (begin, index), (end, until) in pairwise(begun)
    ]


def _step(steps: Sequence[Step]) -> float:
    return statistics.median(step.end - step.begin for step in steps)


def _rows(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """What most of the steps have."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for step in steps:
        times: Counter[str] = Counter()
        for name, begin, end in step.calls:
            times[name] += 1
            found[name, times[name]].append((begin - step.begin, end - begin))
    rows = [
        {
            "function": name,
            "nth": nth,
            "begins_us": statistics.median(begin for begin, _ in spans),
            "us": statistics.median(length for _, length in spans),
        }
        for (name, nth), spans in found.items()
        if 2 * len(spans) > len(steps)
    ]
    return sorted(rows, key=lambda row: row["begins_us"])


def _host(calls: Sequence[Call]) -> float | None:
    """Between two launches, from the end of the longest wait to the second of them."""
    apart, wait = [], None
    for name, begin, end in sorted(calls, key=lambda call: call[1]):
        if name in WAITS and (wait is None or end - begin > wait[1] - wait[0]):
            wait = begin, end
        elif name == LAUNCH:
            if wait is not None:
                apart.append(begin - wait[1])
            wait = None
    return statistics.median(apart) if apart else None
