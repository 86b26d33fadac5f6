"""Engines whose attention is not the usual one, and the generations of flash-attn that they call.

What an engine decodes is compared with what its model does alone, whose attention is Megatron's
own, in PyTorch.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import megatron_patch
from megatron_patch import testing
from megatron_patch.model import Patch
from megatron_patch.testing.attention import flash_attn_varlen_func, flash_attn_with_kvcache
from megatron_patch.testing.releases import parameters_of

from .checks import needs

MODULE = "megatron.core.transformer.attention"

#: A prompt of many tokens, a short one, and one that comes later; all become longer than a window.
REQUESTS = (
    testing.Request(prompt=tuple(range(1, 40)), num_tokens=12),
    testing.Request(prompt=(5, 6, 7, 8), num_tokens=12),
    testing.Request(prompt=(9, 10), num_tokens=12, arrival_step=3),
)

#: The second and the third prompt begin as the first does, which is cached by then.
SAME_BEGINNING = (
    testing.Request(prompt=tuple(range(1, 40)), num_tokens=6),
    testing.Request(prompt=tuple(range(1, 40)), num_tokens=12, arrival_step=2),
    testing.Request(prompt=(*range(1, 35), 3, 3), num_tokens=12, arrival_step=3),
)

#: Three chunks, and a request that decodes meanwhile.
LONG_PROMPT = (
    testing.Request(prompt=(5, 6, 7, 8), num_tokens=12),
    testing.Request(prompt=tuple(n * 7 % 101 for n in range(150)), num_tokens=8, arrival_step=2),
)

#: Engines whose steps differ, and requests that make them differ.
ENGINES: dict[str, tuple[dict[str, Any], Sequence[testing.Request]]] = {
    "eager": ({}, REQUESTS),
    "all logits": ({"materialize_only_last_token_logits": False}, REQUESTS),
    "padded for graphs": (
        {"num_cuda_graphs": 4, "max_requests": 16, "block_size_tokens": 8},
        REQUESTS,
    ),
    "grouped heads": ({"num_query_groups": 2}, REQUESTS),
    "prefix caching": ({"enable_prefix_caching": True, "block_size_tokens": 8}, SAME_BEGINNING),
    "chunked prefill": ({"enable_chunked_prefill": True, "max_sequence_length": 256}, LONG_PROMPT),
    "speculative": (
        {"num_speculative_tokens": 2, "materialize_only_last_token_logits": False},
        REQUESTS,
    ),
}


def check(fields: dict[str, Any], engine: str = "eager", **alone: Any) -> None:
    """Check that an engine with ``fields`` decodes the tokens of its model alone.

    ``alone`` are other fields for the model alone, where its attention cannot take those of the
    engine.
    """
    others, requests = ENGINES[engine]
    spec = testing.EngineSpec(**{**others, **fields})
    try:
        built, model = testing.build_engine(spec), testing.build_model(replace(spec, **alone))
    except testing.UnsupportedError as error:
        pytest.skip(f"has no such feature: {error}")
    except TypeError as error:
        # Some commits of main look for a class of Transformer Engine, which need not be installed.
        if "isinstance()" not in str(error):
            raise
        pytest.skip("has no such feature: speculative tokens without Transformer Engine")
    decoded = testing.decode(built, requests, capture_logits=False)
    assert decoded.tokens == testing.reference_decode(model, requests, decoded.tokens)


def attention() -> Any:
    """Megatron's module of attention."""
    return importlib.import_module(MODULE)


def layer(*, latent: bool, **fields: Any) -> Any:
    """What stands for a layer of a model with multi-latent attention: that, or a usual one."""
    config = object.__new__(attention().MLATransformerConfig)
    vars(config).update(fields)
    found = SimpleNamespace(config=config, layer_number=1)
    if latent:
        found.softmax_scale = 0.1
    return found


def flash_attn3_forward(**arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What flash-attn 3 returns: the log-sum-exp always, and no sums of split keys."""
    lengths = arguments["seqused_k"]
    output, sums, none = flash_attn_varlen_func(
        arguments["q"],
        arguments["k"],
        arguments["v"],
        arguments["cu_seqlens_q"],
        torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)),
        arguments["max_seqlen_q"],
        arguments["max_seqlen_k"],
        softmax_scale=arguments["softmax_scale"],
        causal=arguments["causal"],
        window_size=arguments["window_size"],
        block_table=arguments["page_table"],
        return_attn_probs=True,
    )
    return output, sums, none, none


def flash_attn3_with_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    page_table: Tensor,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int] = (-1, -1),
    **others: Any,
) -> tuple[Tensor, ...]:
    """flash-attn 3 in its first form."""
    named = {**locals()}
    named.pop("others")
    return flash_attn3_forward(**named)


def flash_attn3_with_two_sides(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    page_table: Tensor,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
) -> tuple[Tensor, ...]:
    """flash-attn 3 as a custom operator of PyTorch, which takes no tuple."""
    named = {**locals()}
    window = (named.pop("window_size_left"), named.pop("window_size_right"))
    return flash_attn3_forward(**named, window_size=window)


def flash_attn3_with_kvcache(*, page_table: Tensor, **arguments: Any) -> Any:
    """The function of flash-attn 2, with another name for one argument."""
    return flash_attn_with_kvcache(block_table=page_table, **arguments)


def flash_attn4_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    seqused_k: Tensor,
    page_table: Tensor,
    window_size: tuple[int | None, int | None] = (None, None),
    num_splits: int = 1,
    return_lse: bool = False,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """flash-attn 4, which returns two values; the second is None unless it is asked for."""
    left, right = (-1 if side is None else side for side in window_size)
    output, sums, _ = flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_k=torch.nn.functional.pad(seqused_k.cumsum(0, dtype=torch.int32), (1, 0)),
        block_table=page_table,
        window_size=(left, right),
        return_attn_probs=True,
        **arguments,
    )
    return output, sums if return_lse else None


#: Generations of flash-attn after the second, which all other tests call.
GENERATIONS = ("3", "3 with two sides", "4")


def use_generation(monkeypatch: pytest.MonkeyPatch, generation: str) -> None:
    """Have Megatron find another generation of flash-attn than the second."""
    module = attention()
    if generation == "4":
        needs(hasattr(module, "HAVE_FA4"), "flash-attn 4")
        monkeypatch.setattr(module, "HAVE_FA4", True)
        monkeypatch.setattr(
            module, "flash_attn4_varlen_func", flash_attn4_varlen_func, raising=False
        )
        return
    forward = flash_attn3_with_window
    if generation == "3 with two sides":
        has_wrapper = hasattr(module.Attention, "_flash_attention_3_forward_wrapper")
        needs(has_wrapper, "a flash-attn 3 whose window has two sides")
        forward = flash_attn3_with_two_sides
    monkeypatch.setattr(module, "HAVE_FA3", True)
    monkeypatch.setattr(module, "_flash_attn_forward", forward, raising=False)
    monkeypatch.setattr(module, "flash_attn3_with_kvcache", flash_attn3_with_kvcache, raising=False)


def assert_called_as_before(monkeypatch: pytest.MonkeyPatch, patch: Patch, **fields: Any) -> None:
    """``patch`` changes no argument of flash-attn in an engine with ``fields``.

    In a test with the fixture ``unpatched``.
    """
    try:
        testing.build_model(testing.EngineSpec(**fields))
    except testing.UnsupportedError as error:
        pytest.skip(f"has no such feature: {error}")
    without = calls_of(monkeypatch, **fields)
    with monkeypatch.context() as alone:
        alone.setenv("MEGATRON_PATCH", patch.id)
        megatron_patch.install()
        found = calls_of(monkeypatch, **fields)
        megatron_patch.uninstall()
    assert found == without


def calls_of(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> list[dict[str, Any]]:
    """The arguments of all calls of flash-attn by an engine with ``fields``.

    Queries are noted without those of padding, which mean nothing; keys and values by their shapes
    alone, for what lies behind the last ones means nothing. What was written to the cache shows in
    the queries of the next layer.
    """
    calls: list[dict[str, Any]] = []
    module = attention()

    def noted(name: str, names: Sequence[str]) -> None:
        original = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            arguments = {**dict(zip(names, args, strict=False)), **kwargs}
            if "cu_seqlens_q" in arguments:
                arguments["q"] = arguments["q"][: int(arguments["cu_seqlens_q"][-1])]
            else:
                arguments["q"] = arguments["q"][arguments["cache_seqlens"] > 0]
            cache = {"k", "v", "k_cache", "v_cache"}
            calls.append(
                {
                    argument: tuple(value.shape) if argument in cache else as_list(value)
                    for argument, value in arguments.items()
                }
            )
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    with monkeypatch.context() as monkeypatch:
        noted("flash_attn_varlen_func", tuple(parameters_of(flash_attn_varlen_func)))
        noted("flash_attn_with_kvcache", tuple(parameters_of(flash_attn_with_kvcache)))
        testing.decode(testing.build_engine(testing.EngineSpec(**fields)), REQUESTS)
    assert {"k" in call for call in calls} == {True, False}  # both have been called
    return calls


def as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
