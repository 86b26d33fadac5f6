"""Megatron's dynamic inference context and engine around a small model."""

from __future__ import annotations

import inspect
from typing import Any

from . import latent_attention
from .graph_scopes import captures_cuda_graphs
from .models import build_model, torch_dtype, transformer_config
from .releases import (
    allow_more_cuda_graphs,
    context_class,
    engine_class,
    inference_arguments,
    inference_config_class,
    parameters_of,
    release,
)
from .runtime import running
from .spec import EngineSpec, UnsupportedError


class NumberTokenizer:
    """A tokenizer whose text is token ids in decimal, separated by spaces."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.bos: int | None = None
        self.eod: int | None = None

    def tokenize(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def detokenize(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, tokens))


def build_context(spec: EngineSpec) -> Any:
    """A ``DynamicInferenceContext``, without model and engine.

    Cheap: building it is little more than allocating its tensors.

    Raises:
        RuntimeError: :func:`~megatron_patch.testing.start` was not called.
        UnsupportedError: see :class:`EngineSpec`.
    """
    arguments = inference_arguments(spec)
    config_class = inference_config_class()
    if config_class is not None:
        return context_class()(transformer_config(spec), config_class(**arguments))
    if "buffer_guaranteed_fraction" in parameters_of(context_class()):
        # Set no blocks aside, except those of one request, which the context insists on.
        arguments.setdefault("buffer_guaranteed_fraction", 0.0)
    return context_class()(
        params_dtype=torch_dtype(spec),
        num_layers=spec.num_layers,
        kv_channels=spec.hidden_size // spec.num_attention_heads,
        num_attention_heads=spec.num_query_groups or spec.num_attention_heads,
        **latent_attention.context_arguments(spec),
        **arguments,
    )


def build_engine(spec: EngineSpec) -> Any:
    """A ``DynamicInferenceEngine`` with the model of :func:`build_model` and its context.

    It captures its CUDA graphs here, if ``spec`` asks for any.

    Raises:
        RuntimeError: :func:`~megatron_patch.testing.start` was not called.
        UnsupportedError: see :class:`EngineSpec`.
    """
    runtime = running()
    if runtime.real_flash_attention and (spec.dtype == "float32" or spec.block_size_tokens % 256):
        raise UnsupportedError(
            "the installed flash-attn takes dtype bfloat16 or float16, and a block_size_tokens "
            f"that is a multiple of 256: {spec}"
        )
    if captures_cuda_graphs(spec):
        allow_more_cuda_graphs()
    model = build_model(spec)
    context = build_context(spec)
    # Releases differ in the class of the controller; the engine's annotations name it.
    parameters = inspect.signature(engine_class(), eval_str=True).parameters
    controller_class = parameters["controller"].annotation
    controller = controller_class(
        _wrap(model, context, spec), tokenizer=NumberTokenizer(spec.vocab_size)
    )
    arguments: dict[str, Any] = {"termination_id": -1, "random_seed": spec.seed}
    if spec.enable_chunked_prefill is not None:
        arguments["enable_chunked_prefill"] = spec.enable_chunked_prefill
    if "enable_cuda_graph" in parameters and "cuda_graph_impl" not in vars(model.config):
        arguments["enable_cuda_graph"] = model.config.enable_cuda_graph
    arguments = {name: value for name, value in arguments.items() if name in parameters}

    async def build() -> Any:
        # Within a running event loop, which is then the one that the engine uses.
        return engine_class()(controller, context, **arguments)

    return runtime.loop.run_until_complete(build())


def _wrap(model: Any, context: Any, spec: EngineSpec) -> Any:
    """Megatron's ``GPTInferenceWrapper``, ready for the engine."""
    from megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper import (
        GPTInferenceWrapper,
    )

    if "inference_wrapper_config" not in parameters_of(GPTInferenceWrapper):
        return GPTInferenceWrapper(model, context)
    from megatron.core.inference.model_inference_wrappers.inference_wrapper_config import (
        InferenceWrapperConfig,
    )

    config = InferenceWrapperConfig(
        hidden_size=spec.hidden_size,
        params_dtype=torch_dtype(spec),
        inference_batch_times_seqlen_threshold=-1,
        padded_vocab_size=spec.vocab_size,
        inference_max_requests=spec.max_requests,
        inference_max_seq_length=spec.max_sequence_length,
    )
    wrapper = GPTInferenceWrapper(model, config, context)
    wrapper.prep_model_for_inference()  # sets what a dynamic engine then reads
    return wrapper


def suspend(engine: Any) -> None:
    """Suspend ``engine`` between two steps. Whether it keeps its KV cache depends on the release,
    and on ``kv_cache_management_mode`` of the spec.

    Raises:
        UnsupportedError: the release's engine cannot be suspended.
    """
    _call(engine, "suspend")


def resume(engine: Any) -> None:
    """Resume a suspended ``engine``; its requests go on.

    Raises:
        UnsupportedError: the release's engine cannot be suspended.
    """
    _call(engine, "resume")


def is_suspended(engine: Any) -> bool:
    """Whether ``engine`` is suspended, and so would make no step."""
    if hasattr(engine, "is_suspended"):
        return bool(engine.is_suspended)
    return getattr(getattr(engine, "state", None), "name", None) == "SUSPENDED"


def _call(engine: Any, name: str) -> None:
    method = getattr(engine, name, None)
    if method is None:
        raise UnsupportedError(f"the dynamic engine of {release()} has no {name}()")
    method()
