"""Megatron's graph runner and manager without a captured graph, which there is none of on a CPU."""

from __future__ import annotations

from typing import Any

import torch

from megatron_patch import testing


def cuda_graphs() -> Any:
    """Megatron's module."""
    testing.context_class()
    from megatron.core.transformer import cuda_graphs

    return cuda_graphs


def runner_of(args: Any, kwargs: Any) -> Any:
    """A runner that has captured a layer with these arguments."""
    graphs = cuda_graphs()
    runner = graphs._CudaGraphRunner.__new__(graphs._CudaGraphRunner)
    torch.nn.Module.__init__(runner)
    runner.fwd_graph_input_arg_metas = [graphs.ArgMetadata(arg) for arg in args]
    runner.fwd_graph_input_kwarg_metas = {k: graphs.ArgMetadata(v) for k, v in kwargs.items()}
    runner.fwd_graph_recorded = True
    runner.status = graphs._GraphStatus.FWD_READY
    return runner


class Context:
    """An inference context, as far as the manager looks at it."""

    padded_batch_dimensions = None

    def is_static_batching(self) -> bool:
        return False


def manager_of(runner: Any, mocker: Any) -> Any:
    """A manager that gets this runner for its layer, and whose replays return ``"replayed"``."""
    graphs = cuda_graphs()
    manager = graphs.CudaGraphManager.__new__(graphs.CudaGraphManager)
    torch.nn.Module.__init__(manager)
    manager.is_first_microbatch = True
    mocker.patch.object(graphs.CudaGraphManager, "get_cudagraph_runner", return_value=runner)
    mocker.patch.object(graphs._CudaGraphRunner, "replay_graph_capture", return_value="replayed")
    return manager


def replay(manager: Any, layer: torch.nn.Module) -> None:
    """One call of the layer in inference."""
    with torch.inference_mode():
        assert manager(layer, (), {"inference_context": Context()}) == "replayed"
