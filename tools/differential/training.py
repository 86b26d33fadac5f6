"""What a trainer does to the model between two steps of its engine."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from megatron_patch import testing
from megatron_patch.testing.releases import allow_more_cuda_graphs, set_inference_mode

from . import building, observing
from .configuration import VOCABULARY, Configuration

if TYPE_CHECKING:
    from torch import Tensor

LENGTH = 12
RATE = 0.05


def weights(model: Any) -> dict[str, Tensor]:
    """Copies of the parameters.

    A projection of latents that Megatron has taken apart for its engine has the name that it had.
    """
    return {
        name.replace(".linear_kv_up_proj_linear.", ".linear_kv_up_proj."): value.detach().clone()
        for name, value in model.named_parameters()
    }


def next_epoch(engine: Any, epoch: int) -> None:
    """Do what the engine does when its coordinator announces the next epoch of the policy."""
    engine._generation_epoch = epoch
    for entry in engine.requests.values():
        request = entry.record[-1]
        boundary = (len(request.prompt_tokens) + len(request.generated_tokens) - 1, epoch)
        for name in ("policy_epoch", "kv_cache_epoch"):
            if getattr(request, name) is None:
                setattr(request, name, [(0, epoch)])
            else:
                getattr(request, name).append(boundary)


def between(what: str, model: Any, configuration: Configuration, version: int) -> Any:
    """``train``, ``update`` or ``evaluate``; returns what the trainer sees of it."""
    import torch

    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(1000 * configuration.seed + version)
        before = set_inference_mode(False)
        try:
            if what == "update":
                return _update(model)
            return _step(model) if what == "train" else _evaluate(model)
        finally:
            set_inference_mode(before)


def lessons(configuration: Configuration, during: list[str]) -> list[Any]:
    """Train a model that is not the engine's; returns what the trainer sees of each lesson.

    What is being done is noted in ``during``, for the report of a failure.
    """
    during[0] = "building the trainer's model"
    rng = random.Random(configuration.seed)
    model = testing.build_model(building.student(configuration), training=True)
    noted = []
    for number, lesson in enumerate(configuration.lessons):
        during[0] = f"lesson {number}"
        batches = [
            [[rng.randrange(VOCABULARY) for _ in range(LENGTH)]]
            for _ in range(configuration.microbatches)
        ]
        model.train(lesson != "evaluate")
        if lesson == "train":
            noted.append(_train(model, batches))
        else:
            noted.append(_evaluate(model, LENGTH - 1))  # the shape that was captured
    return noted


def _train(model: Any, batches: Any) -> Any:
    import torch

    trained = testing.train_step(model, batches)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad * RATE)
    return {
        "losses": [observing.digest(loss) for loss in trained.losses],
        "gradients": {name: observing.digest(value) for name, value in trained.gradients.items()},
    }


def _batch(model: Any, length: int = LENGTH) -> tuple[Tensor, ...]:
    import torch

    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (1, length + 1), generator=generator).to(device)
    positions = torch.arange(length, device=device)[None]
    hidden = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)[None, None]
    return tokens[:, :-1], positions, hidden, tokens[:, 1:]


def _update(model: Any) -> None:
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * RATE)


def _step(model: Any) -> Any:
    import torch

    modes = {module: module.training for module in model.modules()}
    model.train()
    tokens, positions, hidden, labels = _batch(model)
    with torch.enable_grad():
        loss = model(tokens, positions, hidden, labels=labels)
        loss.mean().backward()
    noted = {
        "loss": observing.digest(loss),
        "requires_grad": loss.requires_grad,
        "gradients": {
            name: None if value.grad is None else observing.digest(value.grad)
            for name, value in model.named_parameters()
        },
    }
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad * RATE)
                parameter.grad = None
    for module, mode in modes.items():
        module.training = mode
    return noted


def _evaluate(model: Any, length: int = LENGTH) -> Any:
    """Call the model alone without gradients: what it returns, and what can be done with that."""
    import torch

    before = set_inference_mode(False)
    tokens, positions, hidden, _ = _batch(model, length)
    gradients = _gradients(model)
    seen: dict[str, Any] = {}

    def keep(module: Any, args: Any) -> None:
        seen["of the layers"] = args[0]  # where they are in CUDA graphs, no hook of theirs runs

    handle = model.decoder.final_layernorm.register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            seen["logits"] = model(tokens, positions, hidden)
    finally:
        handle.remove()
        set_inference_mode(before)
    noted = {}
    for name, tensor in seen.items():
        noted[name] = {
            **observing.output(tensor, length),
            "numpy": _outcome(tensor.float().cpu().numpy),
            "backward": _outcome(tensor.sum().backward),
            "gradients changed": _gradients(model) != gradients,
        }
    return noted


def _gradients(model: Any) -> list[str]:
    found = []
    for parameter in model.parameters():
        for name in ("grad", "main_grad"):
            value = getattr(parameter, name, None)
            found.append("" if value is None else observing.digest(value))
    return found


def _outcome(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def forget_earlier_runs() -> None:
    """Drop what Megatron keeps in the process of the runs before: graphs, and losses of drafts.

    The table of those losses has a place for each draft of the first model that was trained, so a
    model with more of them would raise IndexError.
    """
    from megatron.core.transformer import cuda_graphs, multi_token_prediction

    if hasattr(cuda_graphs, "delete_cuda_graphs"):
        cuda_graphs.delete_cuda_graphs()
    record = cuda_graphs._CudagraphGlobalRecord
    for name in ("cudagraph_record", "cudagraph_inference_record"):
        if hasattr(record, name):
            setattr(record, name, [])
    allow_more_cuda_graphs()
    multi_token_prediction.MTPLossLoggingHelper.tracker.clear()
