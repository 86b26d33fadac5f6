"""The names that the installed release of Megatron uses, found by looking at its signatures."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection
from importlib.util import find_spec
from typing import Any

from .runtime import running
from .spec import EngineSpec, UnsupportedError
from .version import core_version

# Other names that releases have for a field of EngineSpec.
ALIASES = {
    "block_size_tokens": ("chunk_size_tokens",),
    "buffer_size_gb": ("active_buffer_size_gb",),
    "max_requests": ("max_requests_override",),
    "max_tokens": ("max_tokens_override",),
}

# Fields of EngineSpec that are arguments of the context or, in some releases, of the engine.
INFERENCE_FIELDS = (
    "max_sequence_length",
    "block_size_tokens",
    "buffer_size_gb",
    "max_requests",
    "max_tokens",
    "materialize_only_last_token_logits",
    "unified_memory_level",
    "kv_cache_management_mode",
    "num_cuda_graphs",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "num_speculative_tokens",
)


def release() -> str:
    """Name and version of the installed Megatron-Core, for messages."""
    return f"Megatron-Core {core_version()}"


def context_class() -> Any:
    """Megatron's own ``DynamicInferenceContext``.

    Raises RuntimeError if :func:`~megatron_patch.testing.start` was not called: a context cannot
    be made without.
    """
    running()
    from megatron.core.inference.contexts.dynamic_context import DynamicInferenceContext

    return DynamicInferenceContext


def engine_class() -> Any:
    """Megatron's own ``DynamicInferenceEngine``."""
    running()
    from megatron.core.inference.engines.dynamic_engine import DynamicInferenceEngine

    return DynamicInferenceEngine


def inference_config_class() -> Any:
    """Megatron's ``InferenceConfig``, or None: then the context takes its fields itself."""
    parameter = inspect.signature(context_class()).parameters.get("inference_config")
    if parameter is None:
        return None
    from megatron.core.inference.config import InferenceConfig

    return InferenceConfig


def set_inference_mode(active: bool) -> bool:
    """Set Megatron's process-wide inference mode, where the release has one; returns the old mode.

    Engines from 0.18 on switch it on when they are made or resumed, and off when suspended, each
    for all others too.
    """
    from megatron.core.inference import utils

    mode = getattr(utils, "InferenceMode", None)
    if mode is None:
        return False
    before = bool(mode.is_active())
    if active:
        mode.set_active()
    else:
        mode.unset_active()
    return before


def allow_more_cuda_graphs() -> None:
    """Let another engine capture CUDA graphs; those of earlier engines stay as they are.

    0.14 notes in a process-wide flag that graphs were captured, and then raises for a model without
    any. It also keeps using a memory pool that has gone together with an earlier engine.
    """
    from megatron.core.transformer import cuda_graphs

    record = getattr(cuda_graphs, "_CudagraphGlobalRecord", None)
    if record is None or not record.cudagraph_created:
        return
    record.cudagraph_created = False
    for pool in ("global_mempool", "fwd_mempools", "bwd_mempool"):
        if hasattr(cuda_graphs.CudaGraphManager, pool):
            setattr(cuda_graphs.CudaGraphManager, pool, None)


def drop_cuda_graphs() -> None:
    """Have Megatron forget the CUDA graphs of all engines and models of this process.

    Engines and models that exist then capture new graphs or, in releases that cannot drop graphs
    (0.14 and 0.15), cannot be used any more. Call this before an engine with another
    ``cuda_graph_scope`` is made: 0.16 takes the layers of the earlier engine for those of the new.
    """
    from megatron.core.transformer import cuda_graphs

    delete = getattr(cuda_graphs, "delete_cuda_graphs", None)
    if delete is not None:
        delete()
    else:
        cuda_graphs._CudagraphGlobalRecord.cudagraph_record = []
        allow_more_cuda_graphs()


def parameters_of(function: Any) -> Collection[str]:
    """Names of the arguments that ``function``, or the constructor of a class, takes."""
    return inspect.signature(function).parameters.keys()


def check(spec: EngineSpec) -> None:
    """Raise UnsupportedError for a field of ``spec`` that the release or this machine lacks."""
    known = {*context_parameters(), *parameters_of(engine_class())}
    for name, value in _inference_values(spec).items():
        default = _default(name)
        if value != default and not known.intersection((name, *ALIASES.get(name, ()))):
            raise UnsupportedError(f"{release()} has no {name}; leave it at {default!r}")
    for name in spec.options:
        if name not in context_parameters():
            raise UnsupportedError(f"{release()} has no inference option {name!r}; leave it out")
    if spec.unified_memory_level and running().on_cpu:
        raise UnsupportedError(
            f"unified_memory_level {spec.unified_memory_level} needs a CUDA device ({release()} "
            "would warn and go on without)"
        )
    # From 0.18 on a Triton kernel verifies speculative tokens. Triton can run it on a CPU.
    kernels = "megatron.core.inference.text_generation_controllers.mtp_utils_triton"
    if spec.num_speculative_tokens and find_spec(kernels) and not find_spec("triton"):
        raise UnsupportedError(f"num_speculative_tokens of {release()} needs the package triton")


def inference_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Arguments of the context, or of its ``InferenceConfig``, under the release's names."""
    check(spec)
    parameters = context_parameters()
    arguments: dict[str, Any] = {}
    for name, value in _inference_values(spec).items():
        for known in (name, *ALIASES.get(name, ())):
            if known in parameters and value is not None:
                arguments[known] = value
    if "kv_cache_management_mode" in arguments:
        from megatron.core.inference.config import KVCacheManagementMode

        mode = KVCacheManagementMode(arguments["kv_cache_management_mode"])
        arguments["kv_cache_management_mode"] = mode
    if "use_cuda_graphs_for_non_decode_steps" in parameters:
        arguments["use_cuda_graphs_for_non_decode_steps"] = False
    arguments.update(spec.options)
    return arguments


def context_parameters() -> Collection[str]:
    """Names of the fields of ``InferenceConfig`` or, where there is none, of the context."""
    return parameters_of(inference_config_class() or context_class())


def _inference_values(spec: EngineSpec) -> dict[str, Any]:
    values = {name: getattr(spec, name) for name in INFERENCE_FIELDS}
    mode = spec.kv_cache_management_mode
    modes = ("persist", "offload", "recompute")
    if mode is not None and mode not in modes:
        raise ValueError(f"kv_cache_management_mode must be one of {modes}, not {mode!r}")
    if values["buffer_size_gb"] is None:
        values["buffer_size_gb"] = _default_buffer_size_gb(spec)
    return values


def _default(name: str) -> Any:
    return next(field.default for field in dataclasses.fields(EngineSpec) if field.name == name)


def _default_buffer_size_gb(spec: EngineSpec) -> float:
    """GiB of ``max_requests`` sequences of the greatest length, and of one block not in use."""
    from .models import torch_dtype

    blocks_per_request = -(-spec.max_sequence_length // spec.block_size_tokens)
    kept = spec.hidden_size
    if not {"max_requests", *ALIASES["max_requests"]} & {*context_parameters()}:
        # Then the blocks decide how many requests there can be, and those of fewer KV heads are
        # smaller.
        kept = (
            kept * (spec.num_query_groups or spec.num_attention_heads) // spec.num_attention_heads
        )
    block_bytes = 2 * spec.num_layers * spec.block_size_tokens * kept * torch_dtype(spec).itemsize
    # Half a block more, so that no rounding on the way loses one.
    return float((spec.max_requests * blocks_per_request + 1.5) * block_bytes / 1024**3)
