"""What a Mamba layer keeps of a prompt for its convolution, on whichever release is installed."""

from __future__ import annotations

import importlib
import inspect
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_patch.backports.upstream.mamba_conv_state import MAMBA_CONV_STATE

from ..mamba import import_mamba
from .checks import assert_state_of_record, needs, proof

WIDTH, CHANNELS, SLOTS = 4, 6, 5


@pytest.fixture
def module(device) -> Any:
    return import_mamba("megatron.core.ssm.mamba_mixer")


def test_state(module):
    assert_state_of_record(MAMBA_CONV_STATE)


class States(Exception):
    """The kernel of the convolution is called, with the states in place."""


def varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """As that of causal_conv1d: the last tokens of each sequence, behind zeros."""
    states = x.new_zeros(len(cu_seqlens) - 1, x.shape[1], state_len)
    for row, (start, end) in enumerate(pairwise(cu_seqlens)):
        tokens = x[max(int(start), int(end) - state_len) : int(end)]
        if len(tokens):
            states[row, :, -len(tokens) :] = tokens.T
    return states


def masked_update(states: Tensor, indices: Tensor, new: Tensor) -> None:
    """As Megatron's kernel, which runs on a GPU alone."""
    for index, values in zip(indices.tolist(), new, strict=True):
        if index >= 0:
            states[index] = values


class Layer:
    """As much of a Mamba mixer as there is before its convolution."""

    def __init__(self, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        mixer = module.MambaMixer
        needs(hasattr(mixer, "_ssm_prefill"), "a prefill of Mamba layers")
        parameters = inspect.signature(mixer._ssm_prefill).parameters
        self.one_at_a_time = "is_chunked_prefill" in parameters
        if self.one_at_a_time:
            monkeypatch.setattr(module, "causal_conv1d_fn", self.convolve, raising=False)
        else:
            kernels = importlib.import_module("megatron.core.ssm.ops.causal_conv1d_varlen")
            monkeypatch.setattr(kernels, "causal_conv1d_varlen_fn", self.convolve)
        monkeypatch.setattr(module, "causal_conv1d_varlen_states", varlen_states, raising=False)
        monkeypatch.setattr(module, "tensor_masked_update", masked_update)
        self.states = torch.zeros(SLOTS, CHANNELS, WIDTH)
        one = torch.ones(1)
        part = SimpleNamespace(
            d_inner_local_tpcp=2,
            ngroups_local_tpcp=1,
            nheads_local_tpcp=1,
            get_A_log=lambda: one,
            get_conv1d_weight=lambda: torch.ones(CHANNELS, 1, WIDTH),
            get_conv1d_bias=lambda: torch.ones(CHANNELS),
        )
        # Without causal_conv1d and mamba_ssm none can be built: what the prefill reads is set here.
        self.mixer = mixer.__new__(mixer)
        torch.nn.Module.__init__(self.mixer)
        self.mixer.__dict__.update(cp=part, d_state=2, d_conv=WIDTH, activation="silu")

    def convolve(self, **_: Any) -> Tensor:
        raise States

    def step(self, chunks: list[tuple[int, list[float]]]) -> None:
        """Read a chunk of tokens for each slot; each channel of a token is its number."""
        tokens = torch.tensor([token for _, chunk in chunks for token in chunk])
        sizes = torch.tensor([0, *(len(chunk) for _, chunk in chunks)])
        inputs = tokens[:, None, None].expand(-1, 1, 2 + CHANNELS + 1)
        options: dict[str, Any] = {
            "seq_idx": torch.zeros(1, len(tokens), dtype=torch.int32),
            "cu_seqlens": sizes.cumsum(0).to(torch.int32),
        }
        if self.one_at_a_time:
            needs(len(chunks) == 1, "chunks of several requests in one step")
            options = {"is_chunked_prefill": True}
        with pytest.raises(States):
            self.mixer._ssm_prefill(
                inputs,
                conv_state=self.states,
                ssm_state=torch.zeros(SLOTS, 1, 2, 2),
                batch_indices=torch.tensor([slot for slot, _ in chunks], dtype=torch.int32),
                **options,
            )

    def kept(self, slot: int) -> list[float]:
        """What the state of a slot has, which is alike for all channels."""
        (state,) = {tuple(row) for row in self.states[slot].tolist()}
        return list(state)


@pytest.fixture
def layer(module, monkeypatch) -> Layer:
    return Layer(module, monkeypatch)


@proof
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_short_chunk_keeps_the_tokens_before_it(layer, length):
    layer.step([(2, [1.0, 2.0, 3.0, 4.0, 5.0])])
    new = [6.0, 7.0, 8.0][:length]
    layer.step([(2, new)])
    assert layer.kept(2) == [1.0, 2.0, 3.0, 4.0, 5.0, *new][-WIDTH:]


@proof
def test_each_request_of_a_step_keeps_its_own(layer):
    layer.step([(0, [1.0, 2.0, 3.0]), (3, [11.0, 12.0, 13.0, 14.0, 15.0])])
    # The last one is padding.
    layer.step([(3, [16.0]), (1, [21.0]), (0, [4.0, 5.0, 6.0, 7.0, 8.0]), (-1, [])])
    assert layer.kept(0) == [5.0, 6.0, 7.0, 8.0]
    assert layer.kept(1) == [0.0, 0.0, 0.0, 21.0]
    assert layer.kept(3) == [13.0, 14.0, 15.0, 16.0]
    assert layer.kept(4) == [0.0] * WIDTH


@pytest.mark.parametrize("length", [4, 5, 9])
def test_long_chunks_leave_what_they_left(layer, length):
    layer.step([(2, [9.0] * 5)])
    new = [float(token) for token in range(length)]
    layer.step([(2, new)])
    assert layer.kept(2) == new[-WIDTH:]
