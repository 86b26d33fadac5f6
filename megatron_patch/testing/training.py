"""Train a small model for a step, with and without Megatron's CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .releases import set_inference_mode
from .runtime import running

if TYPE_CHECKING:
    from torch import Tensor

Batch = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Trained:
    """What :func:`train_step` got from the model."""

    losses: tuple[Tensor, ...]
    """Loss of each microbatch: scalar, float32, detached."""
    gradients: dict[str, Tensor]
    """By the name of each parameter, a copy of its ``main_grad``, of the parameter's shape."""


def train_step(model: Any, microbatches: Sequence[Batch], in_flight: int = 1) -> Trained:
    """Forward and backward passes of ``model`` over ``microbatches``.

    The model is wrapped in Megatron's ``DistributedDataParallel``, as in its training loop: the
    gradients of all microbatches add up in ``main_grad`` of the parameters, which is zeroed before,
    and which is their ``grad`` at the end, for an optimiser of PyTorch. The weights stay as they
    are. Last, CUDA graphs are created, as Megatron's schedules do: a model that captures any runs
    its first step without them, and replays them in later steps.

    Args:
        model: made by ``build_model(spec, training=True)``.
        microbatches: token ids, (batch, sequence) each, all of one shape. The sequence is at least
            two tokens, of which each is predicted from those before it.
        in_flight: how many forward passes are made before the backward passes of the same
            microbatches, in their order. Megatron captures graphs for each of them.
    """
    before = set_inference_mode(False)  # an engine may have switched it on
    parallel = _in_parallel(model)
    parallel.zero_grad_buffer()
    model.zero_grad(set_to_none=True)
    losses = []
    try:
        for start in range(0, len(microbatches), in_flight):
            forwards = [loss_of(parallel, batch) for batch in microbatches[start:][:in_flight]]
            for loss in forwards:
                loss.backward()
                losses.append(loss.detach().clone())
        parallel.finish_grad_sync()
        _create_cuda_graphs(model)
    finally:
        set_inference_mode(before)
    gradients = {}
    for name, parameter in model.named_parameters():
        gradients[name] = parameter.main_grad.clone()
        parameter.grad = parameter.main_grad.to(parameter.dtype, copy=True)
    return Trained(tuple(losses), gradients)


def _in_parallel(model: Any) -> Any:
    """``model`` wrapped in Megatron's data parallelism, once. It stays wrapped, and in memory:
    Megatron puts a hook that refers to the model on autograd's nodes, which no search for garbage
    sees."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    name = "_in_data_parallel_of_tests"
    if name not in vars(model):
        parallel = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
        vars(model)[name] = parallel  # beside the submodules, not among them
    return vars(model)[name]


def loss_of(model: Any, batch: Batch) -> Tensor:
    """Mean cross entropy of each token after those before it, scalar, float32.

    Args:
        model: of :func:`~megatron_patch.testing.build_model`, in either mode, alone or wrapped.
        batch: token ids, (batch, sequence).
    """
    import torch

    tokens = torch.tensor([list(row) for row in batch], device=running().device)
    logits = forward(model, [row[:-1] for row in batch])
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def forward(model: Any, batch: Batch) -> Tensor:
    """Logits of ``model`` alone, (batch, sequence, vocab_size), in whatever mode of autograd."""
    before = set_inference_mode(False)  # an engine may have switched it on
    try:
        return _logits(model, batch)
    finally:
        set_inference_mode(before)


def _logits(model: Any, batch: Batch) -> Tensor:
    import torch

    device = running().device
    tokens = torch.tensor([list(row) for row in batch], device=device)
    length = tokens.shape[1]
    positions = torch.arange(length, device=device)[None].expand_as(tokens)
    hidden = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    logits: Tensor = model(tokens, positions, hidden[None, None])
    return logits


def overwritten_inputs(model: Any) -> list[int]:
    """Numbers of the layers whose input a gradient overwrites before their backward graph runs.

    A defect of 0.16 and 0.17: they free the input buffer of a forward graph as soon as it is
    captured, and reuse it for the gradient of an output. Replays then compute gradients of
    the layer's own first operator, and of all before it, from that gradient.

    Args:
        model: one that :func:`train_step` made CUDA graphs of.
    """
    runners = [
        (index, runner)
        for index, layer in enumerate(model.decoder.layers)
        for runner in layer.cudagraph_manager.cudagraph_runners
    ]
    gradients = {
        gradient.data_ptr()
        for _, runner in runners
        for gradient in runner.static_grad_outputs
        if gradient is not None
    }
    return [
        index
        for index, runner in runners
        if runner.fwd_graph_input_surface[0].data_ptr() in gradients
    ]


def _create_cuda_graphs(model: Any) -> None:
    config = model.config
    if getattr(config, "cuda_graph_impl", "none") != "local" and not config.enable_cuda_graph:
        return
    from megatron.core.transformer.cuda_graphs import create_cudagraphs

    create_cudagraphs()
