"""What a reset does to the pool of free Mamba states, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_patch import testing
from megatron_patch.backports.upstream.mamba_metadata_reset import MAMBA_METADATA_RESET

from . import hybrids
from .checks import assert_state_of_record, proof

pytestmark = pytest.mark.usefixtures("device")

REQUESTS = [
    testing.Request(tuple(range(5 * i, 5 * i + 9)), 3 + i, arrival_step=i) for i in range(6)
]


def hybrid_engine() -> tuple[Any, testing.EngineSpec]:
    spec = testing.EngineSpec(options=hybrids.options(2), buffer_size_gb=0.02)
    return testing.build_engine(spec), spec


def test_state():
    testing.context_class()
    assert_state_of_record(MAMBA_METADATA_RESET)


@proof
@pytest.mark.parametrize("under_inference_mode", [False, True])
def test_states_are_returned_after_a_reset(under_inference_mode):
    metadata = hybrid_engine()[0].context.mamba_metadata
    with torch.inference_mode(under_inference_mode):
        metadata.reset()
    slots = [int(metadata.allocate_slot()) for _ in range(3)]
    metadata.request_to_mamba_state_idx[:3] = torch.tensor(slots, dtype=torch.int32)
    metadata.free_slots(torch.tensor([0, 2]))
    count = metadata.mamba_state_free_slot_count
    assert count == metadata.max_requests - 1
    assert {*metadata.mamba_state_free_slots[:count].tolist()} == {
        *range(metadata.max_requests)
    } - {slots[1]}


@proof
def test_an_engine_that_was_reset_under_inference_mode_decodes():
    engine, spec = hybrid_engine()
    for _ in range(2):
        with torch.inference_mode():
            engine.reset()
        hybrids.decode(engine, spec, REQUESTS)


def test_a_reset_makes_another_tensor_as_before():
    metadata = hybrid_engine()[0].context.mamba_metadata
    before = metadata.mamba_state_free_slots
    before.copy_(before.flip(0))
    metadata.reset()
    after = metadata.mamba_state_free_slots
    assert after is not before
    assert before.tolist() == list(reversed(range(metadata.max_requests)))
    assert after.tolist() == list(range(metadata.max_requests))
    assert (after.dtype, after.device) == (before.dtype, before.device)
