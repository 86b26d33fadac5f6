"""Sliding windows, YaRN, sinks and scales of attention in a small model."""

from __future__ import annotations

import copy
import functools
from typing import Any

from .releases import parameters_of, release
from .spec import YARN, EngineSpec, UnsupportedError

SOFTMAX_TYPES = ("vanilla", "off-by-one", "learnable")


def attention_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Arguments of the ``TransformerConfig``: fields of ``spec`` that are not at their defaults.

    Raises:
        UnsupportedError: the release has no such argument.
    """
    from megatron.core.transformer.transformer_config import TransformerConfig

    if spec.softmax_type not in SOFTMAX_TYPES:
        raise ValueError(f"softmax_type must be one of {SOFTMAX_TYPES}, not {spec.softmax_type!r}")
    frequency: Any = spec.window_attn_skip_freq
    values = {
        "window_size": spec.window_size,
        # Megatron takes only a list.
        "window_attn_skip_freq": list(frequency) if isinstance(frequency, tuple) else frequency,
        "softmax_type": None if spec.softmax_type == "vanilla" else spec.softmax_type,
        "softmax_scale": spec.softmax_scale,
    }
    arguments = {name: value for name, value in values.items() if value is not None}
    for name in arguments:
        if name not in parameters_of(TransformerConfig):
            raise UnsupportedError(f"{release()} has no {name}; leave it at its default")
    return arguments


def set_yarn(config: Any, spec: EngineSpec) -> None:
    """Give ``config`` what a model with YaRN reads there, if ``spec`` is for one.

    Raises:
        UnsupportedError: the release's ``GPTModel`` has no YaRN.
    """
    if spec.position_embedding_type != "yarn":
        if spec.yarn:
            raise ValueError(
                f"yarn needs position_embedding_type 'yarn', not {spec.position_embedding_type!r}"
            )
        return
    from megatron.core.models.common.embeddings import yarn_rotary_pos_embedding

    if not hasattr(yarn_rotary_pos_embedding, "_yarn_get_concentration_factor_from_config"):
        raise UnsupportedError(f"{release()} has no position_embedding_type 'yarn'")
    # Until the autumn of 2025 its embedding took this for the scaling of another kind of RoPE.
    config.use_cpu_initialization = False
    unknown = set(spec.yarn) - set(YARN)
    if unknown:
        raise ValueError(f"yarn has no {min(unknown)!r}, only {', '.join(YARN)}")
    for name, value in {**YARN, **spec.yarn}.items():
        # Not one of its fields: whoever builds a model sets it.
        setattr(config, f"yarn_{name}", value)


def prepare_layers(layer_spec: Any, spec: EngineSpec) -> None:
    """Put stand-ins into ``layer_spec`` where the release's layers refuse a window.

    The layers of 0.14 leave windows to Transformer Engine. Only the model alone and training use
    the stand-ins: an engine calls flash-attn itself.
    """
    from megatron.core.transformer.transformer_config import TransformerConfig

    if spec.window_size is None or "window_attn_skip_freq" in parameters_of(TransformerConfig):
        return
    layer_spec.submodules.self_attention.submodules.core_attention = _windowed_attention()


@functools.cache
def _windowed_attention() -> Any:
    import torch
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    class WindowedDotProductAttention(DotProductAttention):  # type: ignore[misc]
        """Megatron's attention, with the window put into its mask."""

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            without = copy.copy(config)
            without.window_size = None
            super().__init__(without, *args, **kwargs)
            self._window_size = config.window_size

        def forward(self, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
            before, behind = self._window_size
            position = torch.arange(key.shape[0], device=key.device)
            # The last query stands at the last key.
            distance = position - position[-query.shape[0] :, None]
            hidden = torch.zeros_like(distance, dtype=torch.bool)
            if before >= 0:
                hidden = hidden | (distance < -before)
            if behind >= 0:
                hidden = hidden | (distance > behind)
            # A static engine has no mask for a single query, which sees all keys.
            mask = hidden[None, None] if mask is None else mask | hidden
            return super().forward(query, key, value, mask, **kwargs)

    return WindowedDotProductAttention


def initialise_sinks(model: Any) -> None:
    """Draw the sinks of all heads, which some releases leave as uninitialised memory.

    They are drawn widely enough to decide which token comes next.
    """
    import torch

    for name, parameter in model.named_parameters():
        if name.endswith(".softmax_offset"):
            torch.nn.init.normal_(parameter.data, 1.0, 2.0)
