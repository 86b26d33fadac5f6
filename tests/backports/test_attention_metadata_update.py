"""What attention gets to read, and how many operators that takes."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from megatron_patch import State, testing
from megatron_patch.backports.ours.attention_metadata_update import (
    ATTENTION_METADATA_UPDATE,
)
from megatron_patch.judge import judge
from megatron_patch.verdicts import Verdict
from tools.benchmarking import select, selected

from ..conftest import RELEASE, expected_state, not_in_source
from .checks import (
    Operators,
    as_it_is,
    assert_patches_change_no_output,
    needs,
    proof,
    state_of,
    with_one_token_changed,
)

UPDATE = ATTENTION_METADATA_UPDATE.variants[0].edits[0].target
PATCHED = Version("0.16") <= RELEASE < Version("0.18")

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(
    not PATCHED, reason=f"{RELEASE} has no such metadata, or fills it on the host"
)


def test_state():
    testing.context_class()
    assert state_of(ATTENTION_METADATA_UPDATE) is expected_state(
        State.APPLIED if PATCHED else State.NOT_APPLICABLE
    )


MAX_REQUESTS, MAX_BLOCKS, BLOCKS = 6, 3, 20


def metadata(methods):
    """The metadata of a context, of which these methods are the class's own."""
    from megatron.core.inference.contexts.attention_context.mha_metadata import (
        NonGraphedMHAMetadata,
    )

    bound = type("Bound", (NonGraphedMHAMetadata,), {"update": None, **methods})
    return bound(BLOCKS, MAX_BLOCKS, MAX_REQUESTS, 4, 64)


def methods():
    """The methods as they are now. `update()` is that of the base class, without `.item()`."""
    from megatron.core.inference.contexts.attention_context.metadata_base import MetadataBase
    from megatron.core.inference.contexts.attention_context.mha_metadata import MHAMetadata

    functions = MHAMetadata.update, MHAMetadata.reset, MetadataBase.tensor_copy_and_pad
    return {function.__name__: as_it_is(function) for function in functions}


@st.composite
def steps(draw):
    """Lengths, offsets and block tables of a batch, and how many rows it is padded to."""
    real = draw(st.integers(0, MAX_REQUESTS))
    numbers = st.lists(st.integers(0, 9), min_size=real, max_size=real)
    table = st.lists(st.integers(-1, BLOCKS - 1), min_size=MAX_BLOCKS, max_size=MAX_BLOCKS)
    return (
        draw(numbers),
        draw(numbers),
        draw(st.lists(table, min_size=real, max_size=real)),
        draw(st.integers(real, MAX_REQUESTS)),
        draw(st.booleans()),
    )


def update(one, lengths, offsets, tables, padded, decode):
    """Fill the metadata, and return what attention reads."""

    def tensor(values, *shape):
        return torch.tensor(values, dtype=torch.int32).view(len(lengths), *shape)

    batch = tensor(lengths), tensor(offsets), tensor(tables, MAX_BLOCKS)
    if "real_batch_size" in inspect.signature(one.update).parameters:  # before upstream #2380
        one.update(*batch, max(sum(lengths), 1), len(lengths), padded, decode)
    else:
        padded_dimensions = SimpleNamespace(
            req_count=padded, token_count=max(sum(lengths), 1), prefill_req_count=int(not decode)
        )
        one.update(*batch, SimpleNamespace(req_count=len(lengths)), padded_dimensions)
    return {
        name: (value.tolist(), value.dtype) if isinstance(value, torch.Tensor) else value
        for name, value in one.state_data.items()
    }


@only_patched
@not_in_source
@pytest.mark.parametrize(
    "pair",
    [("-attention-metadata-update", "all"), ("none", "attention-metadata-update")],
    ids=["on top of the others", "alone"],
)
def test_any_sequence_of_batches_gives_the_values_of_the_unpatched_methods(pair):
    testing.context_class()
    with selected(pair[0]):
        without = methods()
        select(pair[1])
        with_patch = methods()
    assert all(with_patch[name].__code__ is not without[name].__code__ for name in without)

    @given(st.lists(steps(), min_size=1, max_size=4), st.booleans())
    def compare(sequence, resets):
        one, other = metadata(without), metadata(with_patch)
        for step in sequence:
            assert update(one, *step) == update(other, *step)
            if resets:
                one.reset()
                other.reset()
                assert (one._max_seqlen_q, other._max_seqlen_q) == (0, 0)

    compare()


FULL = ([1] * MAX_REQUESTS, [5] * MAX_REQUESTS, [[1, 2, -1]] * MAX_REQUESTS, MAX_REQUESTS, True)


def operators_in_a_step():
    """Operators of a decode step whose batch has the size of its graph; it resets two metadata."""
    one = metadata(methods())
    with Operators(views=False) as operators:
        update(one, *FULL)
        one.reset()
        one.reset()
    return len(operators.names)


def fills_on_the_gpu() -> bool:
    """Whether the metadata copies the values of a step into buffers of its own."""
    testing.context_class()
    try:
        from megatron.core.inference.contexts.attention_context import mha_metadata
    except ImportError:
        return False
    methods = {"__init__", "update", "reset"}
    return methods <= {*vars(mha_metadata.MHAMetadata)}


@proof
def test_a_step_takes_few_operators():
    needs(fills_on_the_gpu(), "metadata that is filled on the GPU")
    assert operators_in_a_step() <= 6
    seen = update(metadata(methods()), *FULL)
    assert seen["cu_query_seq_lengths"][0] == [*range(MAX_REQUESTS + 1)]
    assert seen["kv_seq_lengths"][0] == [6] * MAX_REQUESTS


@only_patched
def test_unpatched_a_step_takes_many(unpatched):
    testing.context_class()
    assert operators_in_a_step() >= 25


@only_patched
@pytest.mark.parametrize("graphs", [None, 1, 4])
def test_tokens_and_logits_are_bit_identical(unpatched, graphs):
    spec = testing.EngineSpec(max_requests=16, block_size_tokens=8, num_cuda_graphs=graphs)
    assert_patches_change_no_output(spec)


@only_patched
@not_in_source
def test_one_changed_token_in_the_target_is_drifted():
    judgement = judge(ATTENTION_METADATA_UPDATE, with_one_token_changed(UPDATE))
    assert judgement.verdict is Verdict.DRIFTED
    assert UPDATE in judgement.reason
