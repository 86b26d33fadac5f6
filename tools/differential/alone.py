"""The model alone, of the weights that there were: what it makes of a whole sequence at once.

Where weights change between two steps, keys and values of earlier tokens stay those of the weights
of their time. So a sequence goes through the model once for each weights that it has seen, and what
its layers make keys and values of is kept for the tokens that had come before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from megatron_patch import testing
from megatron_patch.testing.releases import set_inference_mode

from . import building
from .configuration import VOCABULARY, Configuration
from .observing import Observation

if TYPE_CHECKING:
    from torch import Tensor

Versions = tuple[tuple[int, int], ...]
"""Positions of a sequence, in order, and the version of the weights from there on."""

KEPT = (".linear_qkv", ".linear_kv_down_proj")
"""Layers that return what is cached, or what it is made of: keys and values, or latents."""

RELEASED: Versions = ((0, 0),)


def versions(rows: Sequence[tuple[int, int, int]]) -> Versions:
    """The versions of what a request has, by its rows: first position, number and version.

    A later row is written over an earlier one. What was cached is taken for what it should be: of
    the same weights as the first row.
    """
    found: dict[int, int] = {}
    for offset, count, version in rows:
        found.update(dict.fromkeys(range(offset, offset + count), version))
    changes: list[tuple[int, int]] = []
    for position, version in sorted(found.items()):
        if not changes or changes[-1][1] != version:
            changes.append((position if changes else 0, version))
    return tuple(changes)


def logits(
    configuration: Configuration,
    observation: Observation,
    sequence: tuple[int, ...],
    of: Versions = RELEASED,
) -> Tensor:
    """Of all places of a sequence: (tokens, vocabulary), float32."""
    import torch

    kept = observation.references
    if (sequence, of) in kept:
        return kept[sequence, of]
    model = _model(configuration.of_model())
    device = next(model.parameters()).device
    hidden = torch.ones(len(sequence), len(sequence), dtype=torch.bool, device=device).triu(1)
    before = set_inference_mode(False)
    found = torch.empty(0, VOCABULARY, device=device)
    earlier: dict[Any, Tensor] = {}
    try:
        with torch.no_grad():
            for first, version in of:
                updated = configuration.updates
                weights = observation.weights[version] if updated else model.released
                for name, parameter in model.named_parameters():
                    parameter.copy_(weights[name])
                with _keeping(model, first, earlier):
                    rows = model(
                        torch.tensor([sequence], device=device),
                        torch.arange(len(sequence), device=device)[None],
                        hidden[None, None],
                        runtime_gather_output=True,  # of tensor-parallel ranks
                    )[0].float()
                found = torch.cat([found[:first], rows[first:]])
    finally:
        set_inference_mode(before)
    kept[sequence, of] = found
    return found


@cache
def _model(configuration: Configuration) -> Any:
    model = testing.build_model(testing.EngineSpec(**building.model_fields(configuration)))
    model.released = {name: value.detach().clone() for name, value in model.named_parameters()}
    return model


@contextmanager
def _keeping(model: Any, first: int, earlier: dict[Any, Tensor]) -> Iterator[None]:
    """Have layers make keys and values of tokens before the ``first`` one of what is ``earlier``.

    That is then what they make them of in this pass.
    """
    import torch

    def keep(layer: Any, args: Any, output: Any) -> Any:
        value, bias = output  # of (tokens, 1, ...)
        if first:
            value = torch.cat([earlier[layer][:first], value[first:]])
        earlier[layer] = value
        return value, bias

    with ExitStack() as stack:
        for name, layer in model.named_modules():
            if name.endswith(KEPT):
                stack.callback(layer.register_forward_hook(keep).remove)
        yield
