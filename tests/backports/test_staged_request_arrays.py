"""What the GPU gets to read of the requests, and how many operators it takes to stage it."""

from __future__ import annotations

import pickle
from collections import Counter
from copy import deepcopy

import pytest
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.ours.staged_request_arrays import STAGED_REQUEST_ARRAYS, TRANSFER
from megatron_patch.judge import judge
from megatron_patch.verdicts import Verdict
from tools.benchmarking import selected

from ..conftest import RELEASE, not_in_source
from .checks import (
    SPECS,
    Operators,
    as_it_is,
    assert_patches_change_no_output,
    assert_state_of_record,
    needs,
    proof,
    with_one_token_changed,
)
from .steps import (
    CONTEXTS,
    compare_after_allocations,
    compare_in_any_steps,
    decode_step,
)

PATCHED = RELEASE >= Version("0.18")

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} stages nothing")


def test_state():
    testing.context_class()
    assert_state_of_record(STAGED_REQUEST_ARRAYS)


# ------------------------------------------------------------------------ what it costs


def operators_of_a_transfer() -> Counter[str]:
    """Those of the second transfer of a decode step, which changes nothing."""
    context = decode_step(requests=8).context
    assert context.padded_active_request_count == 8
    with Operators() as operators:
        context.transfer_bookkeeping_to_gpu()
    return Counter(operators.names)


@proof
def test_a_transfer_slices_and_copies_nothing_again():
    context = testing.build_context(testing.EngineSpec())
    needs(hasattr(context, "_staging_temperature"), "sampling parameters that are staged")
    counts = operators_of_a_transfer()
    # The copy to the GPU, and in some releases a number beside it; from 0.19 on of slices.
    assert counts["aten::copy_"] + counts["aten::fill_"] <= 2
    assert counts["aten::slice"] <= 2
    context = decode_step().context
    context.transfer_bookkeeping_to_gpu()
    assert context._staging_request_query_lengths[:4].tolist() == [1] * 4
    assert context._staging_request_kv_length_offsets[:4].tolist() == [2, 3, 4, 5]
    assert context._staging_temperature[:4].tolist() == [1.0] * 4


@only_patched
def test_unpatched_a_transfer_slices_each_tensor(unpatched):
    counts = operators_of_a_transfer()
    assert counts["aten::slice"] >= 6
    assert counts["aten::copy_"] >= 7


# ------------------------------------------------------------------------ what it does


class Compared:
    """Calls the method with and without the patch on one context, and compares what is written."""

    def __init__(self, without):
        self.without = without

    def transfer(self, context) -> None:
        staged, on_gpu = context._cpu_bookkeeping_buf, context.gpu_view._buf
        before = staged.clone()
        context.transfer_bookkeeping_to_gpu()
        patched = staged.clone(), on_gpu.clone()
        # What lies behind the rows is from earlier steps, and both have to leave it alone.
        staged.copy_(before)
        on_gpu.zero_()
        self.without(context)
        assert staged.equal(patched[0])
        assert on_gpu.equal(patched[1])


@pytest.fixture
def compared(unpatched):
    """With all patches, against all but this one."""
    cls = testing.context_class()
    with selected("-staged-request-arrays"):
        without = as_it_is(cls.transfer_bookkeeping_to_gpu)
    megatron_patch.install()
    assert cls.transfer_bookkeeping_to_gpu.__code__ is not without.__code__
    return Compared(without)


@only_patched
@pytest.mark.parametrize("name", CONTEXTS)
def test_after_any_steps_the_staged_rows_are_those_of_the_unpatched_method(compared, name):
    samplings = st.fixed_dictionaries(
        {"temperature": st.sampled_from([0.5, 1.0, 2.0]), "top_k": st.integers(0, 9)}
    )
    compare_in_any_steps(name, samplings, compared.transfer)


@only_patched
def test_storage_that_was_allocated_anew_is_staged(compared):
    compare_after_allocations(compared.transfer)


@only_patched
def test_a_tensor_or_memory_that_was_exchanged_is_staged(compared):
    context = decode_step().context
    compared.transfer(context)
    context.request_kv_length_offsets = context.request_kv_length_offsets + 1
    compared.transfer(context)
    assert context._staging_request_kv_length_offsets[:4].tolist() == [3, 4, 5, 6]
    temperatures = context.active_request_metadata["temperature"]
    temperatures.data = temperatures + 1
    compared.transfer(context)
    assert context._staging_temperature[:4].tolist() == [2.0] * 4


@only_patched
@pytest.mark.parametrize("copy", [lambda c: pickle.loads(pickle.dumps(c)), deepcopy])
def test_a_copy_of_a_context_stages_its_own_requests(device, compared, copy):
    needs(device.type == "cpu" or RELEASE < Version("0.19"), "contexts without CUDA events")
    original = decode_step().context
    compared.transfer(original)
    context = copy(original)
    context.request_kv_length_offsets.add_(1)
    compared.transfer(context)
    assert context._staging_request_kv_length_offsets[:4].tolist() == [3, 4, 5, 6]
    assert original._staging_request_kv_length_offsets[:4].tolist() == [2, 3, 4, 5]


@only_patched
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tokens_and_logits_are_bit_identical(unpatched, spec):
    assert_patches_change_no_output(spec)


@only_patched
@not_in_source
def test_changed_source_is_left_alone():
    judgement = judge(STAGED_REQUEST_ARRAYS, with_one_token_changed(TRANSFER))
    assert judgement.verdict is Verdict.DRIFTED
    assert TRANSFER in judgement.reason
