"""A small GPT model with random weights."""

from __future__ import annotations

from typing import Any

from . import latent_attention
from .attention_variants import (
    attention_arguments,
    initialise_sinks,
    prepare_layers,
    set_yarn,
)
from .graph_scopes import captures_cuda_graphs, cuda_graph_arguments
from .releases import (
    allow_more_cuda_graphs,
    check,
    parameters_of,
    release,
)
from .runtime import running
from .spec import EngineSpec, UnsupportedError

# Wide enough that what a token attends to decides what comes next: with Megatron's usual 0.02 the
# greedy choice of a model this small depends on little but the last token.
INIT_METHOD_STD = 0.2


def transformer_config(spec: EngineSpec) -> Any:
    """The ``TransformerConfig`` of the model.

    Raises:
        UnsupportedError: the release has no such feature, or ``spec.dtype`` is not known.
        ValueError: ``spec`` has a value that no release knows.
    """
    from megatron.core import parallel_state
    from megatron.core.transformer.transformer_config import (
        MLATransformerConfig,
        TransformerConfig,
    )

    check(spec)
    dtype = torch_dtype(spec)
    arguments: dict[str, Any] = {
        "num_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.num_attention_heads,
        "num_query_groups": spec.num_query_groups,
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "num_layers_in_first_pipeline_stage": spec.num_layers_in_first_pipeline_stage,
        "pipeline_dtype": dtype,
        "params_dtype": dtype,
        "bf16": spec.dtype == "bfloat16",
        "fp16": spec.dtype == "float16",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method_std": INIT_METHOD_STD,
        # The same weights with and without a CUDA device.
        "use_cpu_initialization": True,
    }
    arguments.update(cuda_graph_arguments(spec))
    arguments.update(attention_arguments(spec))
    if spec.num_speculative_tokens:
        arguments["mtp_num_layers"] = spec.num_speculative_tokens
    if spec.num_moe_experts is not None:
        from megatron.core.transformer.moe import moe_utils

        if not hasattr(moe_utils, "te_general_gemm"):
            raise UnsupportedError(
                f"num_moe_experts {spec.num_moe_experts}: the router of {release()} runs with "
                "Transformer Engine only, which is not installed"
            )
        arguments["num_moe_experts"] = spec.num_moe_experts
        arguments["moe_router_topk"] = 2
        arguments["moe_token_dispatcher_type"] = "alltoall"
        arguments["expert_model_parallel_size"] = (
            parallel_state.get_expert_model_parallel_world_size()
        )
        arguments["add_bias_linear"] = False
        name = "inference_moe_token_dispatcher_type"
        if name in parameters_of(TransformerConfig):
            arguments[name] = "nccl"  # through the process group, whatever links the ranks
    if spec.activation_recomputation:
        arguments["recompute_granularity"] = "full"
        arguments["recompute_method"] = "uniform"
        arguments["recompute_num_layers"] = 1
    kind: Any = TransformerConfig
    if spec.kv_lora_rank is not None:
        kind = MLATransformerConfig
        arguments.update(latent_attention.layer_arguments(spec))
    for name in spec.model_options:
        if name not in parameters_of(kind):
            raise UnsupportedError(f"{release()} has no model option {name!r} ({kind.__name__})")
    config = kind(**{**arguments, **spec.model_options})
    set_yarn(config, spec)
    return config


def torch_dtype(spec: EngineSpec) -> Any:
    """``spec.dtype`` as a ``torch.dtype``."""
    import torch

    dtypes = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
    if spec.dtype not in dtypes:
        raise UnsupportedError(f"dtype must be one of {', '.join(dtypes)}, not {spec.dtype!r}")
    return dtypes[spec.dtype]


def build_model(spec: EngineSpec, training: bool = False) -> Any:
    """A ``GPTModel`` of Megatron's local (PyTorch-only) layers, on the device.

    Called with ``(input_ids, position_ids, attention_mask)`` it returns logits of shape
    (batch, sequence, ``spec.vocab_size``) in ``spec.dtype``. Does not change the state of PyTorch's
    default random number generators.

    Args:
        training: whether the model is in training mode, for
            :func:`~megatron_patch.testing.train_step`. With ``spec.cuda_graph_scope`` it is then
            the only model whose training Megatron captures, which it does once in a process: one
            that was built before goes on without its CUDA graphs.

    Raises:
        RuntimeError: :func:`~megatron_patch.testing.start` was not called.
        UnsupportedError: see :class:`EngineSpec`.
    """
    device = running().device
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt import gpt_layer_specs
    from megatron.core.models.gpt.gpt_model import GPTModel

    config = transformer_config(spec)
    layer_spec = gpt_layer_specs.get_gpt_layer_local_spec(
        num_experts=spec.num_moe_experts,
        multi_latent_attention=spec.kv_lora_rank is not None,
        **_layer_arguments(config),
    )
    prepare_layers(layer_spec, spec)
    if spec.kv_lora_rank is not None:
        layer_spec = latent_attention.layer_spec(layer_spec, config)
    arguments: dict[str, Any] = {}
    if spec.num_speculative_tokens:
        arguments["mtp_block_spec"] = gpt_layer_specs.get_gpt_mtp_block_spec(
            config, layer_spec, use_transformer_engine=False
        )
    if training and captures_cuda_graphs(spec):
        allow_more_cuda_graphs()
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(spec.seed)
        model = GPTModel(
            config=config,
            transformer_layer_spec=layer_spec,
            vocab_size=spec.vocab_size,
            max_sequence_length=spec.max_sequence_length,
            position_embedding_type=spec.position_embedding_type,
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            **arguments,
        )
        initialise_sinks(model)
    latent_attention.keep_norms(model)
    # PyTorch's own layers in the model do not follow `params_dtype`.
    return model.to(device, torch_dtype(spec)).train(training)


def _layer_arguments(config: Any) -> dict[str, Any]:
    """Arguments of the local layers for the fields of ``config`` that are not at their defaults."""
    arguments: dict[str, Any] = {}
    if config.normalization != "LayerNorm":
        arguments["normalization"] = config.normalization
    if config.qk_layernorm:
        arguments["qk_layernorm"] = True
    return arguments
