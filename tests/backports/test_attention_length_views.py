"""The lengths that attention gets to read, and how many operators they take."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.ours.attention_length_views import ATTENTION_LENGTH_VIEWS, CONTEXT
from megatron_patch.judge import judge
from megatron_patch.verdicts import Verdict

from ..conftest import RELEASE, expected_state
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
    Steps,
    compare_after_allocations,
    decode_step,
    walks,
)

INITIALIZE = f"{CONTEXT}.initialize_attention_state"

PATCHED = RELEASE >= Version("0.18")

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} keeps the lengths on the GPU")


def test_state():
    testing.context_class()
    assert state_of(ATTENTION_LENGTH_VIEWS) is expected_state(
        State.APPLIED if PATCHED else State.NOT_APPLICABLE
    )


# ------------------------------------------------------------------------ what it costs


def operators_of_a_decode_step(monkeypatch) -> Counter[str]:
    """Operators of the method, without the slices of the active requests and the transfer."""
    context = decode_step(requests=8).context
    assert context.padded_active_token_count == 8
    for name in ("build_active_slices", "pad_active_slices", "transfer_bookkeeping_to_gpu"):
        monkeypatch.setattr(context, name, lambda *args, **kwargs: None)
    with Operators(views=False) as operators:
        context.initialize_attention_state()
    return Counter(operators.names)


@only_patched
def test_a_decode_step_takes_no_operator_for_lengths(monkeypatch):
    counts = operators_of_a_decode_step(monkeypatch)
    assert counts.pop("aten::max", 0) == 2  # without a graph: of the queries, and of the KV cache
    assert counts.pop("aten::_local_scalar_dense", 0) + counts.pop("aten::item", 0) == 2
    # Those of the block table. The lengths are written through arrays.
    assert counts == {"aten::clamp": 1, "aten::sub": 1}


@proof
def test_a_decode_step_fills_and_copies_no_lengths(monkeypatch):
    context = decode_step().context
    needs(hasattr(context, "_cpu_mha_kv_seq_lengths"), "lengths that are made on the host")
    assert context._cpu_mha_kv_seq_lengths[:4].tolist() == [3, 4, 5, 6]
    assert context._cpu_mha_query_lengths[:4].tolist() == [1] * 4
    counts = operators_of_a_decode_step(monkeypatch)
    assert counts["aten::fill_"] == 0
    assert counts["aten::copy_"] <= 2  # of the block table, too


@only_patched
def test_unpatched_a_decode_step_fills_and_copies(unpatched, monkeypatch):
    counts = operators_of_a_decode_step(monkeypatch)
    assert counts["aten::fill_"] == 3
    assert counts["aten::copy_"] > 5


# ------------------------------------------------------------------------ what it does


class Compared:
    """Calls the method with and without the patch on one context, and compares what is written."""

    def __init__(self, without):
        self.without = without

    def initialize(self, context) -> None:
        before = context._cpu_bookkeeping_buf.clone()
        context.initialize_attention_state()
        patched = context._cpu_bookkeeping_buf.clone()
        on_gpu = context.gpu_view._buf.clone()
        metadata = context.active_attn_metadata["mha_metadata"]
        state = {name: as_value(value) for name, value in metadata.state_data.items()}
        # What lies behind the rows is from earlier steps, and both have to leave it alone.
        context._cpu_bookkeeping_buf.copy_(before)
        self.without(context)
        assert context._cpu_bookkeeping_buf.equal(patched)
        assert context.gpu_view._buf.equal(on_gpu)
        assert state == {name: as_value(value) for name, value in metadata.state_data.items()}


def as_value(value):
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.fixture
def compared(unpatched, monkeypatch):
    """With all patches, against all but this one."""
    cls = testing.context_class()
    monkeypatch.setenv("MEGATRON_PATCH", "-attention-length-views")
    megatron_patch.install()
    without = as_it_is(cls.initialize_attention_state)
    monkeypatch.delenv("MEGATRON_PATCH")
    megatron_patch.install()
    assert cls.initialize_attention_state.__code__ is not without.__code__
    return Compared(without)


@only_patched
@pytest.mark.parametrize("name", CONTEXTS)
def test_after_any_steps_the_lengths_are_those_of_the_unpatched_method(compared, name):
    seen: Counter[str] = Counter()

    @given(walks(st.integers(2, 30)))
    def compare(walk):
        steps = Steps(**CONTEXTS[name])
        context = steps.context
        for lengths, probability, chance in walk:
            for length in lengths:
                steps.add(length)
            compared.initialize(context)
            seen["empty"] += steps.active == 0
            if not steps.active:
                continue
            seen["padded"] += context.padded_active_request_count > steps.active
            seen["decode"] += context.num_prefill_requests == 0
            seen["prompts"] += context.num_prefill_requests > 0
            # As if some were paused: they are the first ones, and have no tokens in a step.
            tokens = context.active_token_count
            paused = chance.randint(0, context.num_decode_requests)
            if paused < steps.active:
                context.paused_request_count = paused
                context.active_token_count -= paused * (1 + context.num_speculative_tokens)
                seen["paused"] += paused > 0
                compared.initialize(context)
                context.paused_request_count = 0
                context.active_token_count = tokens
            steps.end([chance.random() < probability for _ in range(steps.active)])

    compare()
    wanted = ("decode", "prompts", "padded", "paused", "empty")
    assert min(seen[what] for what in wanted) > 10, seen


@only_patched
def test_storage_that_was_allocated_anew_is_written(compared):
    compare_after_allocations(compared.initialize)


@only_patched
def test_a_buffer_that_holds_anything_gets_its_zeros():
    context = decode_step().context
    context._cpu_mha_cu_query_seq_lengths = context._cpu_mha_cu_query_seq_lengths.clone().fill_(7)
    context._cpu_mha_cu_kv_seq_lengths = context._cpu_mha_cu_kv_seq_lengths.clone().fill_(7)
    context.initialize_attention_state()
    assert context._cpu_mha_cu_query_seq_lengths[:5].tolist() == [0, 1, 2, 3, 4]
    # A prompt of 2 to 5 tokens each, and a token since.
    assert context._cpu_mha_cu_kv_seq_lengths[:5].tolist() == [0, 3, 7, 12, 18]


@only_patched
def test_zeros_that_somebody_wrote_to_are_written_again():
    context = decode_step().context
    context._cpu_mha_cu_query_seq_lengths[0] = 7
    context._cpu_mha_cu_kv_seq_lengths[0] = 7
    context.initialize_attention_state()
    assert context._cpu_mha_cu_query_seq_lengths[0] == context._cpu_mha_cu_kv_seq_lengths[0] == 0


@only_patched
def test_memory_that_was_exchanged_is_read():
    context = decode_step().context
    context.request_kv_length_offsets.data = context.request_kv_length_offsets + 1
    context.initialize_attention_state()
    assert context._cpu_mha_kv_seq_lengths[:4].tolist() == [4, 5, 6, 7]


@only_patched
def test_one_tensor_that_was_exchanged_is_read():
    context = decode_step().context
    context.request_kv_length_offsets = context.request_kv_length_offsets + 1
    context.initialize_attention_state()
    assert context._cpu_mha_kv_seq_lengths[:4].tolist() == [4, 5, 6, 7]


@only_patched
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tokens_and_logits_are_bit_identical(unpatched, spec):
    assert_patches_change_no_output(spec)


# ------------------------------------------------------------------------ the record


@only_patched
def test_changed_source_is_left_alone():
    judgement = judge(ATTENTION_LENGTH_VIEWS, with_one_token_changed(INITIALIZE))
    assert judgement.variant is None
    assert judgement.verdict is Verdict.DRIFTED
