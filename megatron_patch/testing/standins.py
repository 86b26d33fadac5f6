"""Stand-ins that let code written for a CUDA device run on a CPU.

Only what Megatron's dynamic engine uses of :mod:`torch.cuda` is stood in for; CUDA graphs are those
of :mod:`.graphs`. Nothing is asynchronous: an operation has ended when the call returns, so streams
are no-ops, and events only take the time. So a missing synchronisation does not show here. Triton's
kernels run in its interpreter.

Every call of a PyTorch function passes through :class:`CudaOnCpu` first, which costs it about a
microsecond and otherwise changes nothing, unless it names a CUDA device or pinned memory. So times
taken here are not representative. PyTorch keeps the mode per thread: other threads than the one
that entered it are not affected, except in their backward passes.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import graphs

CPU = torch.device("cpu")

#: What makes the host wait for a CUDA device, and is no operator of a CPU's tensors.
TRANSFERS = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu)
#: The functions that the mode looks at whatever they are called with.
WATCHED = frozenset((Tensor.to, Tensor.cuda, Tensor.pin_memory, *TRANSFERS))


class Event:
    """In place of :class:`torch.cuda.Event`."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self._recorded_at: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        self._recorded_at = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once: what was recorded has ended. RuntimeError during a capture."""
        graphs.forbid_while_capturing("Event.synchronize()")

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
        """Return at once. RuntimeError during a capture."""
        graphs.forbid_while_capturing("Stream.synchronize()")

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
    """Has PyTorch create on the CPU, unpinned, the tensors that were to be on a CUDA device."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not kwargs and func not in WATCHED:  # most calls, of which a step has hundreds
            return func(*args)
        # Not `is_capturing`, which the compiler takes for the function that it stands in for.
        if graphs.current() is not None:
            _refuse_transfers(func, kwargs or {})
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


class Engine:
    """In place of autograd's, which it hands everything on to.

    While PyTorch hands the call of a backward pass to a mode, the mode is off; but what recomputes
    activations makes tensors then.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def run_backward(self, *args: Any, **kwargs: Any) -> Any:
        with CudaOnCpu():
            return self._engine.run_backward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def _refuse_transfers(func: Any, kwargs: dict[str, Any]) -> None:
    """Raise RuntimeError where PyTorch does during a capture: the host would have to wait."""
    # Without a device it is the host's, and its value is passed with the operators that take it.
    numbers = func is torch.tensor and kwargs.get("device") is not None
    if numbers or func in TRANSFERS:
        graphs.forbid_while_capturing(f"{func.__name__}() copies between host and device")


def _is_cuda(device: object) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


def synchronize(device: Any = None) -> None:
    """In place of :func:`torch.cuda.synchronize`."""
    graphs.forbid_while_capturing("torch.cuda.synchronize()")


def _no_op() -> Callable[..., None]:
    """A function that does nothing. Not the same one each time: PyTorch's compiler files the
    functions of ``torch.cuda`` by identity, and stops at one that is there under two names."""

    def no_op(*_: Any, **__: Any) -> None:
        pass

    return no_op


@contextmanager
def _environment_variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


@contextmanager
def installed() -> Iterator[torch.device]:
    """Install the stand-ins for the length of the ``with`` block; yields the CPU device.

    ``torch.cuda.is_available()`` goes on telling the truth.
    """
    stream = Stream()

    def memory_stats(*_: Any, **__: Any) -> dict[str, int]:
        return defaultdict(int)

    cuda: dict[str, Any] = {
        # The device itself, not an index: everything that takes a device takes it.
        "current_device": lambda: CPU,
        "set_device": _no_op(),
        "set_stream": _no_op(),
        "synchronize": synchronize,
        "empty_cache": _no_op(),
        "memory_stats": memory_stats,
        "memory_snapshot": lambda *_, **__: [],
        "Event": Event,
        "Stream": Stream,
        "stream": lambda other: stream if other is None else other,
        "current_stream": lambda device=None: stream,
        "default_stream": lambda device=None: stream,
        # The GPU that most tests of Megatron are for; only code for CUDA graphs asks.
        "get_device_capability": lambda device=None: (9, 0),
    }
    nvtx: dict[str, Any] = {name: _no_op() for name in ("range_push", "range_pop", "mark")}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **cuda))
        stack.enter_context(mock.patch.multiple(torch.cuda.nvtx, **nvtx))
        stack.enter_context(graphs.installed())
        # Activation recomputation keeps the state of the device's generator, which nothing uses.
        stack.enter_context(
            mock.patch.object(torch.cuda.random, "get_rng_state", return_value=torch.zeros(0))
        )
        engine = Engine(torch.autograd.Variable._execution_engine)
        stack.enter_context(mock.patch.object(torch.autograd.Variable, "_execution_engine", engine))
        # Triton runs a kernel on the CPU, in its interpreter, if it is told so before Megatron
        # defines the kernel.
        stack.enter_context(_environment_variable("TRITON_INTERPRET", "1"))
        stack.enter_context(CudaOnCpu())
        yield CPU
