"""Layers in place of those over Transformer Engine: Megatron's own local ones.

Where Transformer Engine is missing, Megatron's classes over it are mock objects, and a model made
of them computes nothing. Hybrid models have no other layers, so none of upstream's tests of them
would run. Their Mamba layers and their attention are the real ones all the same: only the linear
layers and the norms around them come from here.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import ExitStack
from typing import Any
from unittest import mock

EXTENSION = "megatron.core.extensions.transformer_engine"


def are_missing() -> bool:
    """Whether Megatron found no Transformer Engine. Imports Megatron."""
    return not importlib.import_module(EXTENSION).HAVE_TE


def install(stack: ExitStack) -> None:
    """Put the layers where Megatron finds the others, until ``stack`` is closed.

    To be called before a module of layer specs is imported, which makes use of them at once.
    """
    extension = importlib.import_module(EXTENSION)
    made = layers()
    missing = {name: vars(extension)[name] for name in made}
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron."):
            taken = {n: made[n] for n, was in missing.items() if vars(module).get(n) is was}
            if taken:
                stack.enter_context(mock.patch.multiple(module, **taken))


def layers() -> dict[str, Any]:
    """By the names of those that they stand for."""
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    class NormAndColumnParallelLinear(ColumnParallelLinear):  # type: ignore[misc]
        def __init__(self, input_size: int, output_size: int, *, config: Any, **options: Any):
            super().__init__(input_size, output_size, config=config, **options)
            self.norm = WrappedTorchNorm(config, input_size, config.layernorm_epsilon)

        def forward(self, hidden_states: Any, *others: Any, **options: Any) -> Any:
            return super().forward(self.norm(hidden_states), *others, **options)

    return {
        "TENorm": WrappedTorchNorm,
        "TEColumnParallelLinear": ColumnParallelLinear,
        "TELayerNormColumnParallelLinear": NormAndColumnParallelLinear,
        "TERowParallelLinear": RowParallelLinear,
        "TEDotProductAttention": DotProductAttention,
    }
