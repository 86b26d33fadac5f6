"""Sliding windows in dynamic inference, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_patch.backports.upstream.sliding_window_attention import SLIDING_WINDOW_ATTENTION

from . import attending
from .checks import assert_state_of_record, proof

pytestmark = pytest.mark.usefixtures("device")

WINDOW = {"window_size": (8, 0)}

WINDOWS: dict[str, dict[str, Any]] = {
    "of 3 tokens": {"window_size": (3, 0)},
    "of 24 tokens, more than a block": {"window_size": (24, 0)},
    "of each second layer": {**WINDOW, "num_layers": 4, "window_attn_skip_freq": 2},
    "of each third layer": {**WINDOW, "num_layers": 4, "window_attn_skip_freq": 3},
    "of some layers": {**WINDOW, "num_layers": 4, "window_attn_skip_freq": (1, 1, 0, 1)},
    "with rotary positions": {**WINDOW, "position_embedding_type": "rope"},
}


def test_state(device):
    attending.attention()
    assert_state_of_record(SLIDING_WINDOW_ATTENTION)


@proof
@pytest.mark.parametrize("window", WINDOWS)
def test_each_layer_attends_within_its_window(window):
    attending.check(WINDOWS[window])


@proof
def test_no_token_sees_what_is_behind_it():
    attending.check({"window_size": (8, -1)}, window_size=(8, 0))
    attending.check({"window_size": (8, 4)}, window_size=(8, 0))


@proof
@pytest.mark.parametrize("engine", attending.ENGINES)
def test_in_all_kinds_of_steps(engine):
    attending.check(WINDOW, engine)


@proof
@pytest.mark.parametrize("generation", attending.GENERATIONS)
def test_with_each_flash_attn(monkeypatch, generation):
    attending.use_generation(monkeypatch, generation)
    attending.check(WINDOW)
    attending.check(WINDOW, "padded for graphs")


@pytest.mark.parametrize(
    "fields",
    [{}, {"window_size": (-1, -1)}, {**WINDOW, "window_attn_skip_freq": (0, 0)}],
    ids=["none", "infinite", "of no layer"],
)
def test_without_a_window_flash_attn_is_called_as_before(unpatched, monkeypatch, fields):
    attending.assert_called_as_before(monkeypatch, SLIDING_WINDOW_ATTENTION, **fields)


def test_multi_latent_attention_is_left_as_it_is():
    window_of = getattr(attending.attention().Attention, "_inference_window", None)
    if window_of is None:
        pytest.skip("not patched")
    for latent in (False, True):
        layer = attending.layer(latent=latent, window_size=(8, 0))
        assert window_of(layer) == ((-1, -1) if latent else (8, 0))
