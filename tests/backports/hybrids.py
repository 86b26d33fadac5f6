"""Engines whose context is that of a hybrid model, with a model that runs without Mamba's kernels.

The context has a Mamba layer more than the model, which is one of attention: its states are
allocated, cached and restored as for a hybrid. So the tokens have to be those of the model alone,
whatever is cached; and what stands for the layer counts the tokens that it sees.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch

from megatron_patch import testing
from megatron_patch.testing.releases import context_parameters, inference_config_class

from ..upstream import support
from .checks import needs

#: Shapes of the states of one request, and how many bytes both have.
CONV_SHAPE, SSM_SHAPE = (544, 4), (8, 64, 16)
STATE_BYTES = 4 * (544 * 4 + 8 * 64 * 16)


def options(layers: int) -> dict[str, Any]:
    """Options of a context for ``layers`` attention layers, and a Mamba layer that nothing runs."""
    needs("mamba_inference_state_config" in context_parameters(), "hybrid models")
    owner: Any = inspect.getmodule(inference_config_class() or testing.context_class())
    config = owner.MambaInferenceStateConfig
    dtypes = [name for name in inspect.signature(config).parameters if name.endswith("dtype")]
    made = config(
        [*"*" * layers, "M"], CONV_SHAPE, SSM_SHAPE, **dict.fromkeys(dtypes, torch.float32)
    )
    return {"mamba_inference_state_config": made}


def caching(states: int, **fields: Any) -> testing.EngineSpec:
    """An engine with prefix caching that has room for ``states`` Mamba states."""
    needs("prefix_caching_mamba_gb" in context_parameters(), "a cache of Mamba states")
    spec = testing.EngineSpec(enable_prefix_caching=True, buffer_size_gb=0.02, **fields)
    # From 0.19 on, the states of one step are a part of it: one for each block of its tokens.
    steps = spec.max_tokens // spec.block_size_tokens
    context = testing.context_class()
    scratch = steps if "scratch" in inspect.getsource(context._allocate_mamba_cache) else 0
    gigabytes = (states + scratch + 0.5) * STATE_BYTES / 1024**3
    return replace(spec, options={**options(spec.num_layers), "prefix_caching_mamba_gb": gigabytes})


def request(context: Any, number: int, prompt: tuple[int, ...]) -> Any:
    """A request for ``context``, with the hashes of its blocks."""
    return support.request(
        number, prompt, block_size_tokens=context.block_size_tokens, enable_prefix_caching=True
    )


class TokenCount:
    """Stands for the Mamba layer: its state is the number of tokens that it has seen.

    Before each pass of ``engine``'s model it adds the tokens of the pass to the live state of each
    request, and notes requests of which the state does not say how many tokens there are by then.
    """

    def __init__(self, engine: Any) -> None:
        self.context = engine.context
        self.wrong: list[tuple[int, int]] = []
        model = engine.controller.inference_wrapped_model.model
        self.hook = model.register_forward_pre_hook(lambda module, args: self._count())

    def _count(self) -> None:
        context = self.context
        for request in range(context.paused_request_count, context.total_request_count):
            slot = int(context.mamba_metadata.request_to_mamba_state_idx[request])
            before = int(context.mamba_ssm_states[0, slot].flatten()[0])
            tokens = int(context.request_query_lengths[request])
            for states in (context.mamba_ssm_states, context.mamba_conv_states):
                states[:, slot] = before + tokens
            offset = int(context.request_kv_length_offsets[request])
            if before != offset:
                self.wrong.append((offset, before))


def decode_tokens(engine: Any, spec: testing.EngineSpec, requests: list[testing.Request]) -> None:
    """Decode, and see that tokens are those of the model alone."""
    model = testing.build_model(replace(spec, options={}))
    decoded = testing.decode(engine, requests, capture_logits=False)
    assert decoded.tokens == testing.reference_decode(model, requests, decoded.tokens)


def decode(engine: Any, spec: testing.EngineSpec, requests: list[testing.Request]) -> None:
    """Decode, and see that tokens and Mamba states are right."""
    counted = TokenCount(engine)
    decode_tokens(engine, spec, requests)
    counted.hook.remove()
    assert counted.wrong == []
