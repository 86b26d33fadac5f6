"""What attention gets to see of the block table, through the real engine and the real context."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.padded_block_table import PADDED_BLOCK_TABLE
from megatron_patch.judge import judge
from megatron_patch.verdicts import Verdict

from ..conftest import RELEASE, expected_state, not_in_source
from .checks import assert_same_outputs, needs, proof, state_of, with_one_token_changed

PATCHED = RELEASE >= Version("0.16")
ON_GPU = RELEASE < Version("0.18")

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} has no rows of -1")
only_on_gpu = pytest.mark.skipif(
    not PATCHED or not ON_GPU, reason=f"{RELEASE} does not pad the block table on the GPU"
)

# None has a prompt of one token: 0.17 takes its step for a decode step, and fails.
REQUESTS = (
    testing.Request(prompt=(5, 6, 7, 8), num_tokens=12),
    testing.Request(prompt=tuple(range(1, 40)), num_tokens=15),
    testing.Request(prompt=(9, 10), num_tokens=7, arrival_step=3),
    testing.Request(prompt=tuple(range(1, 17)), num_tokens=20, arrival_step=6),
    testing.Request(prompt=(1, 2), num_tokens=1, arrival_step=8),
)
SPECS = [
    testing.EngineSpec(),
    testing.EngineSpec(num_cuda_graphs=1),
    testing.EngineSpec(num_cuda_graphs=4, max_requests=16, block_size_tokens=8),
]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=["eager", "one graph", "four graphs"])


def allocator(context):
    return getattr(context, "kv_block_allocator", None) or context.block_allocator


def test_state():
    testing.context_class()
    assert state_of(PADDED_BLOCK_TABLE) is expected_state(
        State.APPLIED if PATCHED else State.NOT_APPLICABLE
    )


@pytest.fixture
def tables(mocker):
    """Copies of the block tables that attention was given, in order."""
    from megatron.core.transformer import attention

    seen: list[torch.Tensor] = []

    def noting(function):
        signature = inspect.signature(function)

        def call(*args, **kwargs):
            table = signature.bind(*args, **kwargs).arguments.get("block_table")
            if table is not None:
                seen.append(table.clone())
            return function(*args, **kwargs)

        return call

    for name in ("flash_attn_varlen_func", "flash_attn_with_kvcache"):
        mocker.patch.object(attention, name, noting(getattr(attention, name)))
    return seen


def run(spec, **arguments):
    engine = testing.build_engine(spec)
    return engine, testing.decode(engine, REQUESTS, **arguments)


@only_patched
@each_spec
def test_attention_gets_no_block_that_does_not_exist(spec, tables):
    engine, _ = run(spec)
    dummy = allocator(engine.context).dummy_block_idx
    assert tables
    for table in tables:
        assert 0 <= table.min()
        assert table.max() <= dummy
    # There were rows of padding, and unused columns of real rows.
    assert any((table == dummy).all(dim=1).any() for table in tables)
    assert any(((table == dummy).any(dim=1) & (table[:, 0] != dummy)).any() for table in tables)


@proof
@each_spec
def test_attention_gets_no_row_or_entry_below_zero(spec, tables):
    """Where no metadata is made for attention, it gets the context's table, in which there may be
    entries of -1 behind the last block of a row, but no row of them."""
    engine, _ = run(spec)
    needs(tables, "a block table")
    padded = hasattr(engine.context, "active_attn_metadata")
    assert all(((table if padded else table[:, 0]) >= 0).all() for table in tables)


@only_patched
@each_spec
def test_unpatched_attention_gets_minus_one(unpatched, spec, tables):
    run(spec)
    assert any((table == -1).all(dim=1).any() for table in tables)
    assert any(((table == -1).any(dim=1) & (table[:, 0] >= 0)).any() for table in tables)


@pytest.mark.skipif(PATCHED, reason=f"{RELEASE} pads with rows of -1")
@each_spec
def test_where_nothing_is_patched_no_row_is_without_a_block(spec, tables):
    run(spec)
    assert tables
    assert all((table[:, 0] >= 0).all() for table in tables)


@only_patched
@each_spec
def test_tokens_and_logits_are_bit_identical(unpatched, spec):
    _, without = run(spec)
    megatron_patch.install()
    _, patched = run(spec)
    assert [len(tokens) for tokens in patched.tokens] == [r.num_tokens for r in REQUESTS]
    assert_same_outputs(patched, without)


@only_patched
@each_spec
def test_what_is_in_the_dummy_block_does_not_matter(spec):
    def poison(engine, step):
        dummy = allocator(engine.context).dummy_block_idx
        engine.context.memory_buffer[:, :, dummy] = float("nan")

    _, expected = run(spec)
    _, poisoned = run(spec, on_step=poison)
    assert poisoned.tokens == expected.tokens
    assert all(a.equal(b) for a, b in zip(poisoned.logits, expected.logits, strict=True))


@only_patched
@each_spec
def test_padding_writes_to_the_dummy_block_only(spec, mocker):
    engine = testing.build_engine(spec)
    context = engine.context
    dummy = allocator(context).dummy_block_idx
    context.memory_buffer.zero_()
    append = context.append_key_value_cache
    padded = 0

    def checking(*args, **kwargs):
        nonlocal padded
        before = context.memory_buffer.clone()
        append(*args, **kwargs)
        storage = getattr(context, "gpu_view", context)
        active, end = context.active_token_count, context.padded_active_token_count
        blocks = storage.token_to_block_idx[:end].tolist()
        places = storage.token_to_local_position_within_kv_block[:active].tolist()
        assert set(blocks[active:]) <= {dummy}
        padded += end - active
        changed = (context.memory_buffer != before).flatten(4).any(dim=4)
        written = {(block, place) for _, _, block, place in changed.nonzero().tolist()}
        assert {at for at in written if at[0] != dummy} == set(
            zip(blocks[:active], places, strict=True)
        )

    mocker.patch.object(context, "append_key_value_cache", checking)
    testing.decode(engine, REQUESTS)
    assert padded > 0


# ------------------------------------------------------------------------ the context alone


def assert_right(context) -> None:
    """The block table is the context's own, with the dummy block where there is none."""
    dummy = allocator(context).dummy_block_idx
    table = context.active_attn_metadata["mha_metadata"].state_data["block_table"].cpu()
    own = context.request_to_kv_block_ids[context.paused_request_count :].cpu()
    own = own[: context.total_request_count - context.paused_request_count]
    assert len(table) == context.padded_active_request_count
    assert table[: len(own)].equal(torch.where(own < 0, dummy, own))
    assert (table[len(own) :] == dummy).all()
    assert 0 <= table.min()
    assert table.max() <= dummy


def add(context, request_id, length):
    from megatron.core.inference.inference_request import DynamicInferenceRequest
    from megatron.core.inference.sampling_params import SamplingParams

    device = context.request_ids.device
    request = DynamicInferenceRequest(
        request_id=request_id,
        prompt_tokens=torch.ones(length, dtype=torch.int64, device=device),
        sampling_params=SamplingParams(num_tokens_to_generate=40, termination_id=-1),
    )
    context.add_request(request)


sizes = st.builds(
    dict,
    max_requests=st.sampled_from([4, 8, 12, 20]),
    num_cuda_graphs=st.none() | st.integers(1, 6),
    block_size_tokens=st.sampled_from([4, 16]),
    max_tokens=st.just(192),
)
steps = st.lists(st.tuples(st.lists(st.integers(1, 40), max_size=4), st.randoms()), max_size=12)


@only_patched
@given(sizes=sizes, steps=steps)
def test_any_batch_of_any_graph(sizes, steps):
    context = testing.build_context(testing.EngineSpec(**sizes))
    for dimensions in context.cuda_graph_batch_dimensions_list:
        context.initialize_attention_state(construct_graph_dimensions=dimensions)
        assert_right(context)
        context.reset()
    request_id = 0
    device = context.request_ids.device
    for lengths, chance in steps:
        for length in lengths:
            fits = context.total_request_count < context.max_requests
            if fits and context.active_token_count + length <= context.max_tokens:
                add(context, request_id, length)
                request_id += 1
        active = context.total_request_count - context.paused_request_count
        if not active:
            continue
        own = context.request_to_kv_block_ids.clone()
        context.initialize_attention_state()
        assert_right(context)
        assert own.equal(context.request_to_kv_block_ids)
        goes_on = [chance.random() < 0.8 for _ in range(active)]
        context.update_requests(
            torch.tensor(goes_on, dtype=torch.int32, device=device),
            torch.ones(active, dtype=torch.int64, device=device),
        )


@only_on_gpu
@pytest.mark.parametrize("installed", [True, False])
def test_no_constant_is_built_and_copied_in_each_step(unpatched, installed, mocker):
    if installed:
        megatron_patch.install()
    from megatron.core.inference.contexts.attention_context.mha_metadata import MHAMetadata

    context = testing.build_context(testing.EngineSpec(num_cuda_graphs=1))
    add(context, 0, 5)
    update = mocker.spy(MHAMetadata, "update")
    context.initialize_attention_state()
    arguments = update.call_args
    built = mocker.spy(torch, "tensor")
    MHAMetadata.update(*arguments.args, **arguments.kwargs)
    assert built.call_count == (0 if installed else 1)


@only_patched
@not_in_source
def test_one_changed_token_in_the_target_is_drifted():
    variant = judge(PADDED_BLOCK_TABLE).variant
    assert variant is not None
    (edit,) = variant.edits
    judgement = judge(PADDED_BLOCK_TABLE, with_one_token_changed(edit.target))
    assert judgement.verdict is Verdict.DRIFTED
    assert edit.target in judgement.reason
