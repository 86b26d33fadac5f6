"""Multi-latent attention: its arguments, and layers without Transformer Engine.

A layer's projection of latents to keys and values is one of Transformer Engine's, with a layer norm
in it, which Megatron takes apart before the first step. Megatron's local layers have nothing to
take apart: their norm, with ``qk_layernorm``, stands beside the projection. Nor can their attention
be told the sizes of keys and values, which differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .releases import release
from .spec import UnsupportedError

if TYPE_CHECKING:
    from .spec import EngineSpec

LAYERS = "megatron.core.transformer.multi_latent_attention"
#: Since 0.19 it decides which layers have norms.
NORMS = "megatron.core.transformer.mla_qk_norm_config"


def layer_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Arguments of the ``MLATransformerConfig`` for ``spec``, beside those of all models."""
    size = spec.hidden_size // spec.num_attention_heads
    return {
        "multi_latent_attention": True,
        "cache_mla_latents": spec.cache_mla_latents,
        "kv_lora_rank": spec.kv_lora_rank,
        "q_lora_rank": None,
        "qk_head_dim": size - size // 2,
        "qk_pos_emb_head_dim": size // 2,
        "v_head_dim": size,
        "rope_type": "rope",
    }


def context_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Arguments of a ``DynamicInferenceContext`` that does not read the model's configuration."""
    if spec.kv_lora_rank is None:
        return {}
    layer = layer_arguments(spec)
    shared = {name: layer[name] for name in ("kv_lora_rank", "qk_pos_emb_head_dim")}
    return {"cache_mla_latent": True, **shared}


def layer_spec(local: Any, config: Any) -> Any:
    """Of a layer of Megatron's, ``local``, but with attention of a model without an engine.

    Raises:
        UnsupportedError: the release has no such layer without Transformer Engine.
    """
    import torch
    from megatron.core.transformer.identity_op import IdentityOp

    if config.qk_layernorm and config.q_lora_rank is None and find_spec(NORMS) is not None:
        raise UnsupportedError(
            f"qk_layernorm without q_lora_rank: {release()} has such layers with Transformer "
            "Engine only, which is not installed"
        )

    class CoreAttention(torch.nn.Module):  # type: ignore[misc]
        """In place of Transformer Engine's ``DotProductAttention``: causal, and nothing else."""

        def __init__(self, *_: Any, softmax_scale: float, **__: Any) -> None:
            super().__init__()
            self.softmax_scale = softmax_scale

        def forward(self, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
            # (sequence, batch, heads, size) each
            found = torch.nn.functional.scaled_dot_product_attention(
                query.permute(1, 2, 0, 3),
                key.permute(1, 2, 0, 3),
                value.permute(1, 2, 0, 3),
                is_causal=True,
                scale=self.softmax_scale,
            )
            return found.permute(2, 0, 1, 3).flatten(2)

    attention = local.submodules.self_attention.submodules
    attention.core_attention = CoreAttention
    if config.q_lora_rank is None:
        # Queries are then made of no latents, which is where the norm would be.
        attention.q_layernorm = IdentityOp
    return local


def keep_norms(model: Any) -> None:
    """Have the projections of ``model`` keep the norms that stand beside them."""
    for layer in model.modules():
        if hasattr(layer, "kv_layernorm") and hasattr(layer, "linear_kv_up_proj"):
            # In a tuple, so that the norm's parameters do not become the projection's.
            layer.linear_kv_up_proj.norms_before = (layer.kv_layernorm,)


@contextmanager
def projections_split() -> Iterator[None]:
    """Have Megatron take apart projections that have no layer norm in them.

    What it then takes for the norm is what :func:`keep_norms` has found there, or none.
    """
    module = import_module(LAYERS)
    name = "split_te_layernorm_column_parallel_linear"
    names = {name: getattr(module, name), "TELinear": getattr(module, "TELinear", None)}
    original = names[name]

    def split(projection: Any, config: Any, init_method: Any, tp_group: Any) -> tuple[Any, Any]:
        if hasattr(projection, "layer_norm_weight"):
            norm, linear = original(projection, config, init_method, tp_group)
            return norm, linear
        from megatron.core.transformer.identity_op import IdentityOp

        (norm,) = getattr(projection, "norms_before", (IdentityOp(),))
        return norm, projection

    setattr(module, name, split)
    if not isinstance(names["TELinear"], type):
        # Layers ask whether they are of this class; none is.
        setattr(module, "TELinear", type("TELinear", (), {}))
    try:
        yield
    finally:
        for changed, value in names.items():
            setattr(module, changed, value)
