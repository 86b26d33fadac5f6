"""What the kernels get to read of the active requests, and how many operators that takes."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections import Counter
from copy import deepcopy

import pytest
import torch
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.ours.active_slice_views import ACTIVE_SLICE_VIEWS, BUILD, CONTEXT
from megatron_patch.judge import judge
from megatron_patch.verdicts import Verdict

from ..conftest import RELEASE, expected_state
from ..upstream import support
from .checks import (
    SPECS,
    Operators,
    as_it_is,
    assert_patches_change_no_output,
    needs,
    proof,
    state_of,
    with_one_token_changed,
)
from .steps import (
    CONTEXTS,
    compare_after_allocations,
    compare_in_any_steps,
    decode_step,
)

PAD = f"{CONTEXT}.pad_active_slices"

PATCHED = RELEASE >= Version("0.18")

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} has no active slices")


def test_state():
    testing.context_class()
    assert state_of(ACTIVE_SLICE_VIEWS) is expected_state(
        State.APPLIED if PATCHED else State.NOT_APPLICABLE
    )


# ------------------------------------------------------------------------ what it costs


def refresh(context, methods=None) -> None:
    """What `initialize_attention_state()` does for the slices, or what these methods do."""
    cls = type(context)
    build, pad = methods or (cls.build_active_slices, cls.pad_active_slices)
    padded = context.padded_active_request_count
    build(context, min(padded, context.max_requests - context.paused_request_count))
    pad(context)


def operators_of_a_decode_step() -> Counter[str]:
    context = decode_step(requests=8).context
    assert context.padded_active_request_count == 8
    with Operators() as operators:
        refresh(context)
    return Counter(operators.names)


@only_patched
def test_a_decode_step_after_a_decode_step_refreshes_and_nothing_else():
    # Two slices for the prompts, of which there are none; all else is written through arrays.
    assert operators_of_a_decode_step() == {"aten::slice": 2}


@proof
def test_a_decode_step_slices_and_fills_nothing_again():
    needs(hasattr(testing.context_class(), "build_active_slices"), "slices of the active requests")
    counts = operators_of_a_decode_step()
    assert counts["aten::slice"] <= 2
    assert counts["aten::fill_"] == counts["aten::zero_"] == 0
    context = decode_step().context
    refresh(context)
    assert context.active_logit_idxs[:4].tolist() == [0, 1, 2, 3]
    assert context.active_request_last_token_idxs[:4].tolist() == [0, 1, 2, 3]


@only_patched
def test_unpatched_a_decode_step_slices_and_fills_no_rows(unpatched):
    counts = operators_of_a_decode_step()
    assert counts["aten::slice"] > 20
    assert counts["aten::fill_"] == 4
    assert counts["aten::zero_"] == 1


# ------------------------------------------------------------------------ what it does


def shown(context) -> dict[str, torch.Tensor]:
    """The tensors that the two methods write to."""
    return {
        **context.active_request_metadata,
        "active_request_last_token_idxs": context.active_request_last_token_idxs,
        "active_logit_idxs": context.active_logit_idxs,
    }


class Compared:
    """Calls both versions of the two methods on the same context, and compares what is written."""

    def __init__(self, *unpatched):
        self.unpatched = unpatched

    def refresh(self, context) -> None:
        before = {name: tensor.clone() for name, tensor in shown(context).items()}
        refresh(context)
        patched = {name: tensor.clone() for name, tensor in shown(context).items()}
        for name, tensor in shown(context).items():
            # The rows whose logits are wanted are written by no one else, and may be left.
            if name != "active_logit_idxs":
                tensor.copy_(before[name])
        refresh(context, self.unpatched)
        for name, tensor in shown(context).items():
            # As bytes: behind the rows there is what memory held before.
            assert tensor.view(torch.uint8).equal(patched[name].view(torch.uint8)), name


@pytest.fixture
def compared(unpatched):
    """Both versions of the methods, while the patches are installed."""
    cls = testing.context_class()
    methods = as_it_is(cls.build_active_slices), as_it_is(cls.pad_active_slices)
    megatron_patch.install()
    assert cls.build_active_slices.__code__ is not methods[0].__code__
    assert cls.pad_active_slices.__code__ is not methods[1].__code__
    return Compared(*methods)


samplings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.5, 1.0, 2.0]),
        "top_k": st.integers(0, 9),
        "return_log_probs": st.booleans(),
    }
)


@only_patched
@pytest.mark.parametrize("name", CONTEXTS)
def test_after_any_steps_the_slices_are_those_of_the_unpatched_methods(compared, name):
    compare_in_any_steps(name, samplings, compared.refresh)


@only_patched
def test_storage_that_was_allocated_anew_is_refreshed(compared):
    compare_after_allocations(compared.refresh)


@only_patched
@pytest.mark.parametrize("owner", ["request_metadata", "active_request_metadata"])
def test_one_tensor_that_was_exchanged_is_refreshed(compared, owner):
    context = decode_step().context
    tensors = getattr(context, owner)
    tensors["temperature"] = tensors["temperature"].clone().add_(1)
    compared.refresh(context)
    assert context.active_request_metadata["temperature"][0] == 2 - (owner != "request_metadata")


@only_patched
def test_another_tensor_of_rows_is_filled(compared):
    context = decode_step().context
    context.active_logit_idxs = torch.full_like(context.active_logit_idxs, 7)
    refresh(context)
    assert context.active_logit_idxs.tolist() == [0, 1, 2, 3, *[0] * 4]


@only_patched
@pytest.mark.parametrize("write", ["in place", "through a view", "in inference mode"])
def test_rows_that_somebody_wrote_to_are_written_again(write):
    context = decode_step().context
    refresh(context)
    rows = context.active_logit_idxs
    if write == "in place":
        rows.fill_(7)
        refresh(context)
    elif write == "through a view":
        rows[1:3] = 7
        refresh(context)
    else:
        with torch.inference_mode():
            context.active_logit_idxs = torch.full_like(rows, 7)
            refresh(context)  # no version is kept of such a tensor
            context.active_logit_idxs.fill_(7)
            refresh(context)
    assert context.active_logit_idxs.tolist() == [0, 1, 2, 3, *[0] * 4]


@only_patched
@pytest.mark.parametrize("owner", ["request_metadata", "active_request_metadata"])
def test_memory_that_was_exchanged_is_refreshed(compared, owner):
    context = decode_step().context
    compared.refresh(context)
    temperatures = getattr(context, owner)["temperature"]
    temperatures.data = temperatures.clone().add_(1)
    compared.refresh(context)
    assert context.active_request_metadata["temperature"][0] == 2 - (owner != "request_metadata")


@only_patched
def test_nothing_keeps_the_rows_of_the_gpu_alive_in_suspension():
    context = testing.build_context(testing.EngineSpec(**support.deallocating()))
    decode_step(context=context)
    rows = weakref.ref(context.active_logit_idxs)
    support.deallocate(context)
    held = [name for name, value in vars(context).items() if isinstance(value, torch.Tensor)]
    assert held == []
    gc.collect()
    assert rows() is None


@only_patched
@pytest.mark.parametrize("copy", [lambda c: pickle.loads(pickle.dumps(c)), deepcopy])
def test_a_copy_of_a_context_is_told_nothing_by_the_original(device, compared, copy):
    needs(device.type == "cpu" or RELEASE < Version("0.19"), "contexts without CUDA events")
    original = decode_step().context
    compared.refresh(original)
    context = copy(original)
    # As often written to as the original, and with something else.
    while context.active_logit_idxs._version < original.active_logit_idxs._version:
        context.active_logit_idxs.fill_(7)
    compared.refresh(context)
    assert torch.equal(context.active_logit_idxs, original.active_logit_idxs)


@only_patched
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tokens_and_logits_are_bit_identical(unpatched, spec):
    assert_patches_change_no_output(spec)


# ------------------------------------------------------------------------ the record


@only_patched
@pytest.mark.parametrize("target", [BUILD, PAD])
def test_changed_source_is_left_alone(target):
    judgement = judge(ACTIVE_SLICE_VIEWS, with_one_token_changed(target))
    assert judgement.variant is None
    assert judgement.verdict is Verdict.DRIFTED
