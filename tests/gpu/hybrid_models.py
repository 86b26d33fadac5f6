"""Hybrid models of a Mamba layer, an attention layer and an MLP, with the kernels of Mamba."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from typing import Any
from unittest import mock

import pytest
from torch import Tensor

from megatron_patch import testing
from megatron_patch.testing import engines
from megatron_patch.testing.models import transformer_config
from megatron_patch.testing.releases import context_parameters
from megatron_patch.testing.runtime import running
from tools.upstream_suite import te_layers

from ..backports.checks import needs

#: Tokens in a block: a multiple of those that Mamba's kernels read at once, and of flash-attn's.
BLOCK = 256

#: Of the Mamba layer; the rest of the sizes are those of the spec.
HEADS = 16


def spec_of(**fields: Any) -> testing.EngineSpec:
    sizes: dict[str, Any] = {
        "num_layers": 3,
        "hidden_size": 256,
        "dtype": "bfloat16" if running().real_flash_attention else "float32",
        "block_size_tokens": BLOCK,
        "max_sequence_length": 2048,
    }
    return testing.EngineSpec(
        **{**sizes, **fields}, model_options={"mamba_num_heads": HEADS, "is_hybrid_model": True}
    )


def build_model(spec: testing.EngineSpec) -> Any:
    """The model of ``spec``, whose linear layers are Megatron's local ones."""
    pytest.importorskip("mamba_ssm")
    pytest.importorskip("causal_conv1d")
    needs("prefix_caching_mamba_gb" in context_parameters(), "a cache of Mamba states")
    with ExitStack() as stack:
        if te_layers.are_missing():
            te_layers.install(stack)
        model_class, stack_name, layer_spec = _model_parts()
        config = transformer_config(spec)
        model = model_class(
            config=config,
            **{stack_name: layer_spec},
            vocab_size=spec.vocab_size,
            max_sequence_length=spec.max_sequence_length,
            hybrid_layer_pattern="M*-",
        )
    for parameter in model.parameters():
        parameter.data = parameter.data.to(running().device, config.params_dtype)
    return model.eval()


def _model_parts() -> tuple[Any, str, Any]:
    """The class of hybrid models, and the name and the value of its layers; 0.17 has others."""
    try:
        models: Any = import_module("megatron.core.models.hybrid.hybrid_model")
    except ModuleNotFoundError:
        models = import_module("megatron.core.models.mamba.mamba_model")
        specs: Any = import_module("megatron.core.models.mamba.mamba_layer_specs")
        return models.MambaModel, "mamba_stack_spec", specs.mamba_stack_spec
    specs = import_module("megatron.core.models.hybrid.hybrid_layer_specs")
    return models.HybridModel, "hybrid_stack_spec", specs.hybrid_stack_spec


def build_engine(spec: testing.EngineSpec, model: Any, **options: Any) -> Any:
    """An engine with that model, and further ``options`` of inference."""
    config = import_module("megatron.core.inference.config").MambaInferenceStateConfig
    state = {"mamba_inference_state_config": config.from_model(model)}
    with mock.patch.object(engines, "build_model", return_value=model):
        return engines.build_engine(replace(spec, options={**spec.options, **state, **options}))


def states_after_prompts(engine: Any, requests: list[testing.Request]) -> list[tuple[Tensor, ...]]:
    """The states that the Mamba layer has of each request when its prompt has been read.

    ``requests`` are in the order in which they arrive.
    """
    numbers: dict[int, int] = {}
    found: dict[int, tuple[Tensor, ...]] = {}

    def note(engine: Any, step: int) -> None:
        for identity in engine.requests:
            numbers.setdefault(identity, len(numbers))
        context = engine.context
        for row in range(context.paused_request_count, context.total_request_count):
            number = numbers[int(context.request_ids[row])]
            read = int(context.request_kv_length_offsets[row])
            if read == len(requests[number].prompt):
                slot = int(context.mamba_metadata.request_to_mamba_state_idx[row])
                states = context.mamba_conv_states, context.mamba_ssm_states
                found[number] = tuple(state[:, slot].float().clone() for state in states)

    testing.decode(engine, requests, on_step=note, capture_logits=False)
    return [found[number] for number in range(len(requests))]
