"""Stand-ins for CUDA graphs on a CPU, which really capture and replay.

A capture runs the code and records its operators with a :class:`~.tape.Recorder`; a replay runs
them again on the same memory, without Python. Code that waits for the device during a capture is
refused as on a GPU. What differs from a GPU:

- Operators run during a capture, so that the outputs of a capture are not garbage.
- Graphs that share a memory pool do not share memory, so none writes over the outputs of another.
- Memory that a graph uses stays alive. If it was moved or freed by hand, the replay raises.
- A tensor of the host may not be read during a capture either: here it cannot be told apart.
"""

from __future__ import annotations

import functools
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .tape import Recorder, Tape, paused

Pool = tuple[int, int]

_thread = threading.local()
_pools = itertools.count(1)


def current() -> CUDAGraph | None:
    """The graph that is being captured in this thread, or None."""
    graph: CUDAGraph | None = getattr(_thread, "graph", None)
    return graph


def is_capturing() -> bool:
    """In place of :func:`torch.cuda.is_current_stream_capturing`."""
    return current() is not None


def graph_pool_handle() -> Pool:
    """In place of :func:`torch.cuda.graph_pool_handle`: another one each time."""
    return (0, next(_pools))


def forbid_while_capturing(what: str) -> None:
    """Raise, and spoil the capture, if there is one: the host waits for the device in ``what``."""
    graph = current()
    if graph is not None and graph.error_mode != "relaxed":
        graph.invalidate()
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")


def on_host(function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Call ``function`` now, and at the same place in each replay of the graph being captured.

    For checks of what a kernel would trust, and for kernels that are none of PyTorch's operators.
    The function may read and write the memory of tensors among its arguments as it likes.
    """
    graph = current()
    if graph is None:
        function(*args, **kwargs)
        return
    args, kwargs = tree_map_only(Tensor, graph.tape.alias, (args, kwargs))
    call = functools.partial(function, *args, **kwargs)
    graph.tape.append(call)
    with paused(), torch.inference_mode():
        call()


@contextmanager
def _kernels_on_host() -> Iterator[None]:
    """Record kernels of Triton, which its interpreter runs here, as one call each."""
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None:
        yield
        return
    launch = interpreter.GridExecutor.__call__

    def recorded(executor: Any, *args: Any, **kwargs: Any) -> None:
        on_host(launch, executor, *args, **kwargs)

    with mock.patch.object(interpreter.GridExecutor, "__call__", recorded):
        yield


class CUDAGraph:
    """In place of :class:`torch.cuda.CUDAGraph`."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.generators: list[Any] = []
        self.error_mode = "global"
        self._pool: Pool | None = None
        self._recorder: Recorder | None = None
        self._capturing = ExitStack()
        self._captured = False

    @property
    def tape(self) -> Tape:
        """What was captured so far. RuntimeError without a capture."""
        if self._recorder is None:
            raise RuntimeError("this CUDA graph was never captured")
        return self._recorder.tape

    def register_generator_state(self, generator: Any) -> None:
        """Accept ``generator``; in a replay, operators use it whether it is registered or not."""
        self.generators.append(generator)

    def capture_begin(self, pool: Pool | None = None, capture_error_mode: str = "global") -> None:
        """Record operators of this thread until :meth:`capture_end`.

        Raises:
            RuntimeError: something is captured already, or this graph was captured before.
        """
        if capture_error_mode not in ("global", "thread_local", "relaxed"):
            raise RuntimeError(f"Unknown capture error mode {capture_error_mode!r}")
        if current() is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if self._recorder is not None:
            raise RuntimeError(
                "This CUDAGraph instance already owns a captured graph. "
                "To capture a new graph, create a new instance."
            )
        self._pool = graph_pool_handle() if pool is None else pool
        self.error_mode = capture_error_mode
        self._recorder = Recorder(Tape())
        self._capturing.enter_context(_kernels_on_host())
        self._capturing.enter_context(self._recorder)
        _thread.graph = self

    def capture_end(self) -> None:
        """Stop recording.

        Raises:
            RuntimeError: nothing is captured, or the host waited for the device meanwhile.
        """
        if current() is not self or self._recorder is None:
            raise RuntimeError("CUDA error: capture_end() without a capture of this graph")
        recorder = self._recorder
        _thread.graph = None
        self._capturing.close()
        if recorder.invalidated:
            self.reset()
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            )
        recorder.tape.seal()
        self._captured = True

    def invalidate(self) -> None:
        """What is being captured cannot become a graph any more."""
        if self._recorder is not None:
            self._recorder.invalidated = True

    def replay(self) -> None:
        """Run what was captured again. Another capture that is going on records it.

        Raises:
            RuntimeError: there is nothing to replay.
        """
        if not self._captured:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        outer = current()
        if outer is not None:
            outer.tape.append(self.tape.run)
        self.tape.run()

    def reset(self) -> None:
        """Forget what was captured."""
        self._recorder, self._captured, self._pool = None, False, None

    def pool(self) -> Pool:
        """The handle of the memory pool. RuntimeError if nothing was captured."""
        if self._pool is None or not self._captured:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return self._pool


class graph:
    """In place of :class:`torch.cuda.graph`."""

    default_capture_stream: Any = None

    def __init__(
        self,
        cuda_graph: CUDAGraph,
        pool: Pool | None = None,
        stream: Any = None,
        capture_error_mode: str = "global",
        **_: Any,
    ) -> None:
        self.cuda_graph = cuda_graph
        self._pool, self._mode = pool, capture_error_mode

    def __enter__(self) -> None:
        torch.cuda.synchronize()
        self.cuda_graph.capture_begin(self._pool, self._mode)

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            # Let that error be raised, and not one on the spoilt capture.
            self.cuda_graph.invalidate()
            try:
                self.cuda_graph.capture_end()
            except RuntimeError:
                return
        self.cuda_graph.capture_end()


@contextmanager
def installed() -> Iterator[None]:
    """Put the stand-ins in :mod:`torch.cuda` for the length of the ``with`` block."""
    names: dict[str, Any] = {
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "graph_pool_handle": graph_pool_handle,
        "is_current_stream_capturing": is_capturing,
    }
    # Where memory comes from is all the same here. A build of PyTorch for CPUs lacks the functions.
    pools: dict[str, Any] = dict.fromkeys(
        ("_cuda_beginAllocateCurrentThreadToPool", "_cuda_endAllocateToPool"),
        lambda device, pool: None,
    )
    with (
        mock.patch.multiple(torch.cuda, **names),
        mock.patch.multiple(torch.cuda.graphs, **names),
        mock.patch.multiple(torch._C, create=True, **pools),
    ):
        yield
