"""Stand-ins that let code written for a CUDA device run on a CPU.

Only what Megatron's dynamic engine uses of :mod:`torch.cuda` is stood in for. Nothing is
asynchronous: an operation has ended when the call returns, so streams are no-ops, and events only
take the time. Orders of operations that are wrong on a CUDA device are not found here.

Every call of a PyTorch function passes through :class:`CudaOnCpu` first, which costs it about a
microsecond and otherwise changes nothing, unless it names a CUDA device or pinned memory. So times
taken here are not representative. PyTorch keeps the mode per thread: other threads than the one
that entered it are not affected.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


class Event:
    """In place of :class:`torch.cuda.Event`."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self._recorded_at: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        self._recorded_at = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once: what was recorded has ended."""

    def wait(self, stream: Stream | None = None) -> None:
        """Return at once: what was recorded has ended."""

    def query(self) -> bool:
        return True

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this event to ``end_event``. ValueError if one was not recorded."""
        if self._recorded_at is None or end_event._recorded_at is None:
            raise ValueError("both events must be recorded before the time between them is taken")
        return (end_event._recorded_at - self._recorded_at) * 1e3


class Stream:
    """In place of :class:`torch.cuda.Stream`, and of ``torch.cuda.stream(...)``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = CPU
        self.cuda_stream = 0

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        """Return at once."""

    def query(self) -> bool:
        return True

    def wait_stream(self, stream: Stream) -> None:
        """Return at once."""

    def wait_event(self, event: Event) -> None:
        """Return at once."""

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event


class CudaOnCpu(TorchFunctionMode):  # type: ignore[misc]
    """Makes PyTorch functions create on the CPU, unpinned, what they were to create elsewhere."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.to:
            args = tuple(CPU if _is_cuda(argument) else argument for argument in args)
        elif func is Tensor.cuda or func is Tensor.pin_memory:
            return args[0]
        if not kwargs:
            return func(*args)
        if kwargs.get("pin_memory") or _is_cuda(kwargs.get("device")):
            kwargs = dict(kwargs)
            kwargs.pop("pin_memory", None)
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = CPU
        return func(*args, **kwargs)


def _is_cuda(device: object) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


def _no_op() -> Callable[..., None]:
    """A function that does nothing. Not the same one each time: PyTorch's compiler files the
    functions of ``torch.cuda`` by identity, and stops at one that is there under two names."""

    def no_op(*_: Any, **__: Any) -> None:
        pass

    return no_op


class _Generators:
    """In place of ``torch.cuda.default_generators``: one generator, whatever the index."""

    def __init__(self) -> None:
        self._generator = torch.Generator(CPU)

    def __getitem__(self, index: object) -> torch.Generator:
        return self._generator


@contextmanager
def installed() -> Iterator[torch.device]:
    """Install the stand-ins for the length of the ``with`` block; yields the CPU device.

    ``torch.cuda.is_available()`` goes on telling the truth. The CUDA random generator becomes one
    that nothing draws from: random numbers come from the CPU's.
    """
    generators = _Generators()
    stream = Stream()

    def run_now(callback: Any, **_: Any) -> None:
        callback()

    def memory_stats(*_: Any, **__: Any) -> dict[str, int]:
        return defaultdict(int)

    def manual_seed(seed: int) -> None:
        generators[0].manual_seed(seed)

    def manual_seed_all(seed: int) -> None:
        generators[0].manual_seed(seed)

    def get_rng_state(*_: Any, **__: Any) -> Tensor:
        return generators[0].get_state()

    def set_rng_state(new_state: Tensor, *_: Any, **__: Any) -> None:
        generators[0].set_state(new_state)

    random = {
        "get_rng_state": get_rng_state,
        "manual_seed": manual_seed,
        "manual_seed_all": manual_seed_all,
        "set_rng_state": set_rng_state,
    }
    cuda = {
        **random,
        # The device itself, and no index: everything that takes a device takes it.
        "current_device": lambda: CPU,
        "set_device": _no_op(),
        "synchronize": _no_op(),
        "empty_cache": _no_op(),
        "memory_stats": memory_stats,
        "memory_snapshot": lambda *_, **__: [],
        "Event": Event,
        "Stream": Stream,
        "stream": lambda other: stream if other is None else other,
        "current_stream": lambda device=None: stream,
        "default_stream": lambda device=None: stream,
        "is_current_stream_capturing": lambda: False,
        "default_generators": generators,
        # Megatron's random number tracker sets generator states through it. Without a CUDA
        # device it would queue them, with a stack trace each, until there is one.
        "_lazy_call": run_now,
    }
    nvtx = {"range_push": _no_op(), "range_pop": _no_op(), "mark": _no_op()}
    with ExitStack() as stack:
        for module, functions in (
            (torch.cuda, cuda),
            (torch.cuda.random, random),
            (torch.cuda.nvtx, nvtx),
        ):
            for name, function in functions.items():
                stack.enter_context(mock.patch.object(module, name, function))
        stack.enter_context(CudaOnCpu())
        yield CPU
