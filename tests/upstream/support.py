"""What the releases call things that the mirrored tests touch."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from megatron_patch import testing
from megatron_patch.testing.releases import inference_config_class, release


def skip_without(owner: Any, name: str) -> None:
    """Skip the test on a release whose `owner`, a class or an object, has no attribute `name`."""
    if not hasattr(owner, name):
        cls = owner if isinstance(owner, type) else type(owner)
        pytest.skip(f"{release()}: {cls.__name__} has no {name}")


def skip_without_argument(function: Any, name: str) -> None:
    """Skip the test on a release whose `function`, or class, takes no argument `name`."""
    if name not in inspect.signature(function).parameters:
        pytest.skip(f"{release()}: {function.__qualname__} takes no {name}")


def module_or_skip(name: str) -> Any:
    """The module `name` of Megatron; skips the test on a release that has none."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        pytest.skip(f"{release()} has no module {name}")


def options_class() -> Any:
    """The class that takes the options of a context: its config, or else the context itself."""
    return inference_config_class() or testing.context_class()


def storage(context: Any) -> Any:
    """The object whose tensors the model reads: the context, or from 0.18 on its `gpu_view`."""
    return getattr(context, "gpu_view", context)


def publish(context: Any) -> None:
    """Make what the context holds visible to the model."""
    context.initialize_attention_state()
    if hasattr(context, "transfer_bookkeeping_to_gpu"):
        context.transfer_bookkeeping_to_gpu()


def allocator(context: Any) -> Any:
    """The allocator of KV blocks."""
    names = ("kv_block_allocator", "block_allocator", "chunk_allocator")
    return next(getattr(context, name) for name in names if hasattr(context, name))


def free_blocks(context: Any) -> int:
    """The number of KV blocks that can be handed out."""
    return _first(allocator(context), "pool_avail", "total_avail", "block_count_avail")


def all_blocks(context: Any) -> int:
    """The number of all KV blocks, that for padding included."""
    return _first(allocator(context), "pool_size", "total_count", "block_count_total")


def _first(owner: Any, *names: str) -> Any:
    spellings = [s for name in names for s in (name, name.replace("block", "chunk"))]
    return next(getattr(owner, name) for name in spellings if hasattr(owner, name))


def tensor(context: Any, name: str) -> torch.Tensor:
    """A tensor of the context. 0.14 says chunk for block."""
    return getattr(context, name if hasattr(context, name) else name.replace("block", "chunk"))


def request(request_id: int, prompt: Sequence[int], num_tokens: int = 4, **fields: Any) -> Any:
    """A `DynamicInferenceRequest`."""
    from megatron.core.inference.inference_request import DynamicInferenceRequest
    from megatron.core.inference.sampling_params import SamplingParams

    sampling = fields.pop("sampling", {})
    return DynamicInferenceRequest(
        request_id=request_id,
        prompt_tokens=torch.tensor(list(prompt), device=torch.cuda.current_device()),
        sampling_params=SamplingParams(num_tokens_to_generate=num_tokens, **sampling),
        **fields,
    )


@functools.cache
def _adds_tokens() -> bool:
    """Whether a context is given a request's tokens, and not the request. Asking takes long."""
    return "request_id" in inspect.signature(testing.context_class().add_request).parameters


def add(context: Any, request_id: int, prompt: Sequence[int], **fields: Any) -> None:
    """Add a request to the context."""
    if _adds_tokens():
        tokens = torch.tensor(list(prompt), device=torch.cuda.current_device())
        context.add_request(request_id, tokens, fields.get("num_tokens", 4))
    else:
        context.add_request(request(request_id, prompt, **fields))


def update(context: Any, new_tokens: torch.Tensor, **tensors: torch.Tensor) -> None:
    """End a step of the context, in which each request got a token of `new_tokens`."""
    device = context.request_ids.device
    on_device = {name: value.to(device) for name, value in tensors.items()}
    mask = torch.ones(len(new_tokens), dtype=torch.int32, device=device)
    context.update_requests(mask, new_tokens.to(device), **on_device)


def deallocating() -> dict[str, Any]:
    """Fields of a context whose storage is deleted in suspension. None on 0.14 and 0.15."""
    if hasattr(testing.context_class(), "reinitialize_inference_state_buffers"):
        return {"kv_cache_management_mode": "recompute"}
    return {"unified_memory_level": 0}


def deallocate(context: Any) -> None:
    """What suspension does to the context; nothing on 0.14 and 0.15."""
    for name in ("deallocate_all_tensors", "deallocate_inference_state_buffers"):
        if hasattr(context, name):
            getattr(context, name)()


def allocate(context: Any) -> None:
    """What resumption does to the context; nothing on 0.14 and 0.15."""
    if hasattr(context, "allocate_all_tensors"):
        context.allocate_all_tensors(is_init=False)
        context.reset()
    elif hasattr(context, "reinitialize_inference_state_buffers"):
        context.reinitialize_inference_state_buffers()


def hybrid() -> dict[str, Any]:
    """Options of the context of a model with a Mamba layer; skips on a release without."""
    skip_without_argument(options_class(), "mamba_inference_state_config")
    owner: Any = inspect.getmodule(options_class())
    config = owner.MambaInferenceStateConfig
    dtypes = [name for name in inspect.signature(config).parameters if name.endswith("dtype")]
    layers, shapes = ["M", "*", "-", "*"], ((544, 4), (8, 64, 16))
    made = config(layers, *shapes, **dict.fromkeys(dtypes, torch.float32))
    return {"mamba_inference_state_config": made}
