"""What the benchmarks of decode steps share: the engine, its patches, the machine."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any
from unittest import mock

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.places import Change
from megatron_patch.testing.version import core_version


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Options for the size of the model and of the batch."""
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--requests", type=int, default=16, help="requests in each decode step")
    parser.add_argument("--prompt", type=int, default=32, help="tokens in each prompt")
    parser.add_argument("--tokens", type=int, default=120, help="tokens for each request")
    parser.add_argument(
        "--cuda-graphs", type=int, default=4, help="CUDA graphs for decode steps; 0: none"
    )
    parser.add_argument("--dtype", help="default: bfloat16 on a CUDA device, float32 on a CPU")


def build(options: argparse.Namespace, device: Any) -> tuple[Any, list[testing.Request]]:
    """The engine, and requests that are all in each of its steps."""
    length = options.prompt + options.tokens
    spec = testing.EngineSpec(
        num_layers=options.layers,
        hidden_size=options.hidden,
        num_attention_heads=options.heads,
        vocab_size=options.vocabulary,
        dtype=options.dtype or ("bfloat16" if device.type == "cuda" else "float32"),
        max_sequence_length=max(512, length),
        block_size_tokens=64,
        max_requests=-(-options.requests // 4) * 4,
        # All prompts in one step.
        max_tokens=-(-max(1024, options.requests * options.prompt) // 64) * 64,
        num_cuda_graphs=options.cuda_graphs or None,
    )
    requests = [
        testing.Request(tuple(range(1 + n, options.prompt + 1 + n)), options.tokens)
        for n in range(options.requests)
    ]
    return testing.build_engine(spec), requests


#: Steps at the beginning of a run, in which the prompts are read and graphs replayed first.
WARM_UP = 3


def decode_steps(engine: Any, requests: Sequence[testing.Request]) -> list[float]:
    """Microseconds of each step in which every request decodes."""
    decoded = testing.decode(engine, requests, capture_logits=False)
    return [seconds * 1e6 for seconds in decoded.step_seconds[WARM_UP:-1]]


def steps_after_warm_up(
    engine: Any, requests: Sequence[testing.Request], start: Callable[[], object]
) -> int:
    """Decode, with ``start`` called when the first steps are over; gives the number of others."""

    def on_step(engine: Any, step: int) -> None:
        if step == WARM_UP:
            start()

    decoded = testing.decode(engine, requests, on_step=on_step, capture_logits=False)
    return decoded.steps - WARM_UP


def cuda_events(engine: Any, requests: Sequence[testing.Request]) -> tuple[Any, int]:
    """What torch's profiler sees of CUDA in decode steps, and the number of steps."""
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CUDA])
    steps = steps_after_warm_up(engine, requests, profiler.start)
    profiler.stop()
    return profiler.events(), steps


def select(selection: str) -> list[str]:
    """Apply the patches of ``selection``, a value of ``MEGATRON_PATCH``, alone; gives their ids."""
    os.environ["MEGATRON_PATCH"] = selection
    megatron_patch.install()
    return [entry.id for entry in megatron_patch.status() if entry.state is State.APPLIED]


@contextmanager
def selected(selection: str) -> Iterator[list[str]]:
    """Within, the patches of ``selection`` are applied, or those of a later :func:`select`."""
    try:
        with mock.patch.dict(os.environ):
            yield select(selection)
    finally:
        megatron_patch.install()


@contextmanager
def alternating(selections: Sequence[str]) -> Iterator[Callable[[str], None]]:
    """Within, what it gives switches between ``selections`` in microseconds.

    To judge the source again takes as long as hundreds of steps, and the clock of a machine is not
    the same half a second later.
    """
    with selected(selections[0]):
        made: dict[str, list[Change]] = {}
        for name in selections:
            select("none")
            select(name)
            # In the order of the series, in which they were made: several may be of one function.
            cases = megatron_patch._engine.cases.values()
            made[name] = [change for case in cases for change in case.changes]
        select("none")
        current: list[Change] = []

        def use(selection: str | None) -> None:
            for change in reversed(current):
                change.undo()
            current[:] = made[selection] if selection is not None else ()
            for change in current:
                change.make()

        try:
            yield use
        finally:
            use(None)


def as_it_is(function: FunctionType) -> FunctionType:
    """A function with the code that ``function`` has now, whatever patches do to that later."""
    parts = function.__globals__, function.__name__, function.__defaults__, function.__closure__
    twin = FunctionType(function.__code__, *parts)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


@contextmanager
def timed(context: Any, method: str) -> Iterator[list[float]]:
    """Note how long each call of ``context.method()`` takes, in microseconds of host time."""
    samples: list[float] = []
    function = getattr(type(context), method)

    def call(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        result = function(context, *arguments, **named)
        samples.append((time.perf_counter() - begin) * 1e6)
        return result

    # On the instance: the patched class stays as a user has it.
    vars(context)[method] = call
    try:
        yield samples
    finally:
        del vars(context)[method]


def machine(device: Any) -> dict[str, str | None]:
    """Names and versions that belong to each figure."""
    import torch

    on_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else f"CPU ({platform.machine()})",
        "megatron_core": core_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_cuda else None,
        "python": platform.python_version(),
    }
