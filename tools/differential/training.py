"""What a trainer does to the model between two steps of its engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_patch.testing.releases import set_inference_mode

from . import observing
from .configuration import VOCABULARY, Configuration

if TYPE_CHECKING:
    from torch import Tensor

LENGTH = 12
RATE = 0.05


def weights(model: Any) -> dict[str, Tensor]:
    """Copies of the parameters."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def next_epoch(engine: Any, epoch: int) -> None:
    """What the engine does when its coordinator announces the next epoch of the policy."""
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

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 * configuration.seed + version)
        before = set_inference_mode(False)
        try:
            if what == "update":
                return _update(model)
            return _step(model) if what == "train" else _evaluate(model)
        finally:
            set_inference_mode(before)


def _batch(model: Any) -> tuple[Tensor, ...]:
    import torch

    device = next(model.parameters()).device
    tokens = torch.randint(VOCABULARY, (1, LENGTH + 1), device=device)
    positions = torch.arange(LENGTH, device=device)[None]
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=device).triu(1)[None, None]
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


def _evaluate(model: Any) -> Any:
    import torch

    tokens, positions, hidden, _ = _batch(model)
    with torch.no_grad():
        logits = model(tokens, positions, hidden)
    return {
        **observing.output(logits, LENGTH),
        "numpy": type(observing_numpy(logits)).__name__,
    }


def observing_numpy(tensor: Any) -> Any:
    """The tensor as NumPy has it, or why it cannot be had."""
    try:
        return tensor.float().numpy()
    except RuntimeError as error:
        return error
