"""``softmax_scale`` in dynamic inference, on whichever release is installed."""

from __future__ import annotations

import pytest

from megatron_patch.backports.ours.attention_softmax_scale import ATTENTION_SOFTMAX_SCALE

from . import attending
from .checks import assert_state_of_record, proof

pytestmark = pytest.mark.usefixtures("device")


def test_state(device):
    attending.attention()
    assert_state_of_record(ATTENTION_SOFTMAX_SCALE)


@proof
@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_the_scale_is_that_of_the_model(scale):
    attending.check({"softmax_scale": scale})


@proof
@pytest.mark.parametrize("engine", attending.ENGINES)
def test_in_all_kinds_of_steps(engine):
    attending.check({"softmax_scale": 0.1}, engine)


@proof
@pytest.mark.parametrize("generation", attending.GENERATIONS)
def test_with_each_flash_attn(monkeypatch, generation):
    attending.use_generation(monkeypatch, generation)
    attending.check({"softmax_scale": 0.1})
    attending.check({"softmax_scale": 0.1}, "padded for graphs")


def test_without_one_flash_attn_is_called_as_before(unpatched, monkeypatch):
    attending.assert_called_as_before(monkeypatch, ATTENTION_SOFTMAX_SCALE)
