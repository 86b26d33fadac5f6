"""The sampling kernels of flashinfer, or stand-ins for them in plain PyTorch.

As flashinfer's, the stand-ins take a seed and an offset from the generator on the host, advance it,
and use both as numbers: a CUDA graph that captures them has those of the capture.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from megatron_patch.testing import module_standins
from megatron_patch.testing.tape import paused


def _uniform(rows: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(rows, 1) float64 in [0, 1), of a seed and an offset that the host knows."""
    with paused():
        offset = int(torch.randint(1 << 20, (), generator=generator, device=generator.device))
    position = torch.arange(rows, device=device, dtype=torch.float64) + offset
    noise = torch.sin(position * 12.9898 + generator.initial_seed() % 1000) * 43758.5453
    return (noise - noise.floor())[:, None]


def top_k_top_p_sampling_from_probs(
    probs: Tensor, top_k: Any, top_p: Any, *, generator: torch.Generator, **_: Any
) -> Tensor:
    """(rows,) int32, a token of each row of ``probs``; ``top_k`` and ``top_p`` filter nothing."""
    drawn = _uniform(probs.shape[0], generator, probs.device)
    tokens = (probs.double().cumsum(-1) < drawn).sum(-1)
    return tokens.clamp(max=probs.shape[-1] - 1).to(torch.int32)


def sampling_from_probs(probs: Tensor, **options: Any) -> Tensor:
    return top_k_top_p_sampling_from_probs(probs, None, None, **options)


def module(device: torch.device) -> ModuleType:
    """flashinfer, where it is installed and ``device`` runs it; or else the stand-ins."""
    return stand_ins() if device.type == "cpu" or find_spec("flashinfer") is None else _installed()


def _installed() -> ModuleType:
    flashinfer = importlib.import_module("flashinfer")
    # Compiled in their first call, which must not be within a capture.
    probs = torch.full((1, 4), 0.25, device="cuda")
    flashinfer.sampling.top_k_top_p_sampling_from_probs(probs, 4, 1.0)
    flashinfer.sampling.sampling_from_probs(probs)
    return flashinfer


def stand_ins() -> ModuleType:
    """In place of ``flashinfer``, for batches without top-k and top-p."""
    kernels = {
        function.__name__: function
        for function in (top_k_top_p_sampling_from_probs, sampling_from_probs)
    }
    sampling = module_standins.module("flashinfer.sampling", __doc__, kernels)
    return module_standins.module("flashinfer", __doc__, {"sampling": sampling})
