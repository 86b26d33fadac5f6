"""The engine of a configuration, and its model alone."""

from __future__ import annotations

from functools import cache
from typing import Any

from megatron_patch import testing
from megatron_patch.testing.releases import context_parameters

from . import states
from .configuration import VOCABULARY, Configuration, Plan

LAYERS, HIDDEN, HEADS = 2, 32, 2
LATENT = 12
"""Numbers of a token that keys and values of all heads are made of, beside its position's."""


def model_fields(configuration: Configuration) -> dict[str, Any]:
    """The fields of the spec that the model depends on, and so what it answers."""
    return {
        "num_layers": LAYERS,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_query_groups": 1 if configuration.grouped else None,
        "vocab_size": VOCABULARY,
        "max_sequence_length": configuration.longest,
        "dtype": configuration.dtype,
        "num_speculative_tokens": configuration.speculative,
        "num_moe_experts": configuration.experts,
        "window_size": configuration.window,
        "window_attn_skip_freq": configuration.window_skip,
        "softmax_type": configuration.sinks or "vanilla",
        "softmax_scale": configuration.scale,
        "position_embedding_type": configuration.positions,
        "kv_lora_rank": LATENT if configuration.latents else None,
        "cache_mla_latents": False,  # without an engine there is no cache
        "activation_recomputation": configuration.recompute,
    }


def spec(configuration: Configuration) -> testing.EngineSpec:
    """What `testing` builds the engine from."""
    options: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    known = context_parameters()
    if "enable_chunked_prefill" in _of_engine():
        fields["enable_chunked_prefill"] = configuration.chunked
    if configuration.prefix is not None:
        from megatron.core.inference.config import PrefixCachingEvictionPolicy

        fields["enable_prefix_caching"] = True
        options["prefix_caching_eviction_policy"] = PrefixCachingEvictionPolicy[
            configuration.prefix
        ]
    if configuration.suspension is not None:
        fields["kv_cache_management_mode"] = configuration.suspension
    if configuration.scheduling is not None:
        options["async_sched_mode"] = configuration.scheduling
    if configuration.mixed:
        options["use_cuda_graphs_for_non_decode_steps"] = True
    if configuration.token_events:
        options["track_generated_token_events"] = True
    if configuration.hybrid is not None:
        steps = configuration.max_tokens // configuration.block_size
        cached = None if configuration.prefix is None else steps
        options.update(states.options(LAYERS, configuration.hybrid, cached))
    if configuration.spare_blocks is not None:
        blocks = configuration.spare_blocks
        aside = -(-configuration.longest // configuration.block_size)
        blocks += max(-(-_tokens(plan) // configuration.block_size) for plan in _all(configuration))
        blocks = max(blocks, 1)
        if "paused_buffer_size_gb" in known:
            aside = configuration.paused_blocks
            options["paused_buffer_size_gb"] = (aside + 0.5) * block_gb(configuration)
        # One block is for padding.
        fields["buffer_size_gb"] = (blocks + aside + 1.5) * block_gb(configuration)
    return testing.EngineSpec(
        **{**model_fields(configuration), "cache_mla_latents": True},
        **fields,
        block_size_tokens=configuration.block_size,
        max_requests=configuration.max_requests,
        max_tokens=configuration.max_tokens,
        num_cuda_graphs=configuration.graphs,
        cuda_graph_scope=None if configuration.graphs is None else configuration.scope,
        materialize_only_last_token_logits=configuration.only_last,
        options=options,
    )


def student(configuration: Configuration) -> testing.EngineSpec:
    """The model of the trainer."""
    return testing.EngineSpec(
        **{**model_fields(configuration), "num_speculative_tokens": 0},
        cuda_graph_scope="layer" if configuration.captured else None,
    )


def block_gb(configuration: Configuration) -> float:
    """GiB of a KV block."""
    width = 2 * HIDDEN // HEADS * (1 if configuration.grouped else HEADS)
    if configuration.latents:
        width = LATENT + HIDDEN // HEADS // 2
    size = 4 if configuration.dtype == "float32" else 2
    return LAYERS * configuration.block_size * width * size / 1024**3


def _all(configuration: Configuration) -> tuple[Plan, ...]:
    """The requests that an engine can have room for."""
    longest = configuration.longest
    found = tuple(plan for plan in configuration.requests if not plan.is_too_long(longest))
    return found or (Plan(),)


def _tokens(plan: Plan) -> int:
    return plan.length + max(plan.num_tokens, 1) + 1


@cache
def _of_engine() -> frozenset[str]:
    from megatron_patch.testing.releases import engine_class, parameters_of

    return frozenset([*parameters_of(engine_class()), *context_parameters()])
