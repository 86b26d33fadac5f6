"""The settings of a small model and its engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

#: YaRN of a small model, which was trained on sequences of 32 tokens.
YARN: Mapping[str, Any] = MappingProxyType(
    {
        "rotary_scaling_factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.0,
        "correction_range_round_to_int": True,
    }
)


class UnsupportedError(ValueError):
    """An :class:`EngineSpec` needs something that the installed Megatron or this machine lacks."""


@dataclass(frozen=True)
class EngineSpec:
    """A small model, its inference context and its engine. The defaults run quickly on a CPU.

    A field for a feature that the installed release of Megatron lacks must be left at its default;
    otherwise building raises :class:`UnsupportedError`, which names the field and the release.
    """

    num_layers: int = 2
    num_layers_in_first_pipeline_stage: int | None = None
    """Layers of the first stage of a pipeline (see :func:`~megatron_patch.testing.start`); the
    other stages share the other layers. None: all stages have the same number."""
    hidden_size: int = 64
    num_attention_heads: int = 4
    num_query_groups: int | None = None
    """Heads of keys and values. None: as many as attention heads."""
    num_moe_experts: int | None = None
    """Experts of each layer, of which a token is routed to two; they run one after the other
    (``SequentialMLP``). None: an ordinary MLP."""
    kv_lora_rank: int | None = None
    """Multi-latent attention: keys and values of all heads are made of latents of this size.
    ``block_size_tokens`` has to be 64. None: ordinary attention."""
    cache_mla_latents: bool = True
    """With ``kv_lora_rank``: True for an engine, False for a model that is called without one. The
    weights are the same."""
    vocab_size: int = 128
    dtype: str = "float32"
    """Dtype of parameters, activations and KV cache: ``float32``, ``bfloat16`` or ``float16``. The
    real flash-attn has no ``float32``."""
    seed: int = 0
    """Seed of the weights, which are the same on each device and, up to rounding, in each dtype."""
    position_embedding_type: str = "learned_absolute"
    """``learned_absolute`` reads the position ids that the context hands out, ``rope`` does not.
    ``yarn`` (from 0.15 on) is ``rope`` for longer sequences than those of the training."""
    yarn: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of ``yarn`` that differ from :data:`YARN`, by the names there."""
    window_size: tuple[int, int] | None = None
    """How many tokens before and after its own position a token attends to; -1: all. None: all
    before. In 0.14, whose layers refuse a window without Transformer Engine, stand-ins apply it."""
    window_attn_skip_freq: int | tuple[int, ...] | None = None
    """N: each N-th layer has no window; or, for each layer, 1 for a window and 0 for none. None:
    all layers have it. From 0.15 on."""
    softmax_type: str = "vanilla"
    """``off-by-one`` or ``learnable``: attention has a sink, which is one more score in the
    denominator: 0, or a parameter of each head. From 0.15 on."""
    softmax_scale: float | None = None
    """Factor of the attention scores. None: one over the square root of a head's dimension."""
    activation_recomputation: bool = False
    """Training computes the activations of each layer again in its backward pass."""

    max_sequence_length: int = 128
    """Most tokens of a request: prompt and generated tokens together."""
    block_size_tokens: int = 16
    """Tokens in one block of the KV cache. The real flash-attn takes multiples of 256 only."""
    buffer_size_gb: float | None = None
    """Size of the KV cache in GiB. None: enough for ``max_requests`` of the longest sequences."""
    max_requests: int = 8
    """Most requests in one step, a multiple of 4."""
    max_tokens: int = 64
    """Most tokens in one step, a multiple of 64."""
    materialize_only_last_token_logits: bool = True
    unified_memory_level: int = 0
    """Above 0 needs a CUDA device."""
    kv_cache_management_mode: str | None = None
    """What a suspended engine does with its KV cache: ``persist``, ``offload`` or ``recompute``.
    None: the release's default."""
    num_cuda_graphs: int | None = None
    """None: no CUDA graphs. Otherwise at most so many, for decode steps, unless ``options`` has
    ``use_cuda_graphs_for_non_decode_steps=True``. Without a CUDA device batches are padded as for
    the graphs, but none is captured, unless ``cuda_graph_scope`` says so."""
    cuda_graph_scope: str | None = None
    """What Megatron captures in one CUDA graph: ``layer``, or ``block``, all layers at once (from
    0.16 on). On a CPU too, where :mod:`~megatron_patch.testing.graphs` stands in for them. Without
    ``num_cuda_graphs`` an engine captures none, but a model in training mode does. None: layers
    where there is a CUDA device and ``num_cuda_graphs`` is given, otherwise nothing."""

    enable_chunked_prefill: bool | None = None
    """None: the release's default."""
    enable_prefix_caching: bool = False
    num_speculative_tokens: int = 0
    """Tokens drafted in a step; the model gets as many multi-token prediction layers."""

    model_options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the ``TransformerConfig``, by their names in the installed release."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of inference, by their names in the installed release: those of
    ``InferenceConfig`` where it exists, and of ``DynamicInferenceContext`` otherwise."""
