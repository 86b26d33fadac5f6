"""Decode steps of the static engine with ``flash_decode``, on whichever release is installed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.ours.flash_decode_attention import FLASH_DECODE_ATTENTION

from . import attending, static_batches
from .checks import assert_state_of_record, proof
from .static_batches import NUM_TOKENS, PROMPTS

pytestmark = pytest.mark.usefixtures("device")

#: A termination id that is no token.
NEVER = -1

WINDOW = {"window_size": (3, 0)}

#: Settings of a layer that flash-attn has to be told.
LAYERS: dict[str, dict[str, Any]] = {
    "window": WINDOW,
    "a longer window": {"window_size": (8, 0)},
    "window of each second layer": {**WINDOW, "num_layers": 4, "window_attn_skip_freq": 2},
    "window of some layers": {**WINDOW, "num_layers": 4, "window_attn_skip_freq": (1, 1, 0, 1)},
    "window and grouped heads": {**WINDOW, "num_query_groups": 2},
    "scale": {"softmax_scale": 0.05},
    "sink": {"softmax_type": "learnable"},
    "sink of 0": {**WINDOW, "softmax_type": "off-by-one"},
    "all of them": {
        **WINDOW,
        "num_layers": 4,
        "num_query_groups": 2,
        "window_attn_skip_freq": 2,
        "softmax_scale": 0.2,
        "softmax_type": "learnable",
    },
}

#: Layers without any such setting.
USUAL: dict[str, dict[str, Any]] = {
    "usual": {},
    "a window of no layer": {**WINDOW, "window_attn_skip_freq": (0, 0)},
}


def spec_of(fields: dict[str, Any]) -> testing.EngineSpec:
    # 0.14 and 0.15 need rotary positions with `flash_decode`.
    return testing.EngineSpec(
        position_embedding_type="rope", model_options={"flash_decode": True}, **fields
    )


def generated(spec: testing.EngineSpec) -> list[tuple[int, ...]]:
    """The tokens that the static engine generates for each of ``PROMPTS``."""
    try:
        engine = static_batches.build(NEVER, spec)
    except testing.UnsupportedError as error:
        pytest.skip(f"has no such feature: {error}")
    return [tuple(done.generated_tokens.tolist()) for done in static_batches.generate(engine)]


def of_the_model(spec: testing.EngineSpec) -> list[tuple[int, ...]]:
    """What the model generates alone, without KV cache and flash-attn."""
    model = testing.build_model(replace(spec, model_options={}))
    requests = [
        testing.Request(tuple(int(word) for word in prompt.split()), NUM_TOKENS)
        for prompt in PROMPTS
    ]
    return list(testing.reference_decode(model, requests))


def test_state():
    attending.attention()
    assert_state_of_record(FLASH_DECODE_ATTENTION)


@proof
@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_attends_as_in_the_model(layer):
    spec = spec_of(LAYERS[layer])
    assert generated(spec) == of_the_model(spec)


@pytest.mark.parametrize("layer", USUAL)
def test_other_layers_call_flash_attn_as_before(unpatched, monkeypatch, layer):
    module = attending.attention()
    original = module.flash_attn_with_kvcache
    calls: list[dict[str, Any]] = []

    def call(**arguments: Any) -> Any:
        # In the caches, what lies behind the last key is uninitialised memory.
        noted = {
            name: tuple(value.shape) if name.endswith("_cache") else attending.as_list(value)
            for name, value in arguments.items()
        }
        calls.append(noted)
        return original(**arguments)

    monkeypatch.setattr(module, "flash_attn_with_kvcache", call)
    tokens = generated(spec_of(USUAL[layer]))
    without = [*calls]
    assert without
    calls.clear()
    megatron_patch.install()
    assert generated(spec_of(USUAL[layer])) == tokens
    assert calls == without
