"""The rows that the output layer or the sampling reads, and whether they are gathered."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from types import MethodType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.last_token_logits_view import LAST_TOKEN_LOGITS_VIEW, TARGET
from megatron_patch.judge import judge

from ..conftest import expected_state
from .checks import (
    SPECS,
    Operators,
    as_it_is,
    assert_patches_change_no_output,
    state_of,
    with_one_token_changed,
)
from .steps import CONTEXTS, Steps, decode_step, walks

RELEASE = Version(importlib.metadata.version("megatron-core"))
ON_HOST = RELEASE >= Version("0.18")

pytestmark = pytest.mark.usefixtures("device")


def test_state():
    testing.context_class()
    assert state_of(LAST_TOKEN_LOGITS_VIEW) is expected_state(State.APPLIED)


# ------------------------------------------------------------------------ what it costs


def logits_and_rows(steps: Steps, function=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits of the step that was begun, and those that ``function`` takes of them."""
    context = steps.context
    device = context.request_ids.device
    generator = torch.Generator(device).manual_seed(steps.added)
    logits = torch.randn(
        (1, context.padded_active_token_count, 5), generator=generator, device=device
    )
    method = MethodType(function, context) if function else context.last_token_logits
    return logits, method(logits)


def is_part_of(rows: torch.Tensor, logits: torch.Tensor) -> bool:
    return rows.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()


def test_a_decode_step_gathers_nothing():
    steps = decode_step()
    with Operators(views=False) as operators:
        logits, rows = logits_and_rows(steps)
    assert rows.equal(logits[0, :4])
    assert is_part_of(rows, logits)
    assert operators.names == ["aten::randn"]


def test_unpatched_a_decode_step_gathers(unpatched):
    steps = decode_step()
    with Operators(views=False) as operators:
        logits, rows = logits_and_rows(steps)
    assert rows.equal(logits[0, :4])
    assert not is_part_of(rows, logits)
    assert "aten::index" in operators.names


# ------------------------------------------------------------------------ what it does


@pytest.fixture
def unpatched_function(unpatched):
    """The function as released, while the patches are installed."""
    function = as_it_is(testing.context_class().last_token_logits)
    megatron_patch.install()
    assert testing.context_class().last_token_logits.__code__ is not function.__code__
    return function


@pytest.mark.parametrize("name", CONTEXTS)
def test_in_any_step_the_rows_are_those_of_the_unpatched_method(unpatched_function, name):
    try:
        Steps(**CONTEXTS[name])
    except testing.UnsupportedError as error:
        pytest.skip(str(error))
    seen: Counter[str] = Counter()

    @given(walks(st.integers(1, 30)))
    def compare(walk):
        steps = Steps(**CONTEXTS[name])
        for lengths, probability, chance in walk:
            for length in lengths:
                # Prompts of one token are a defect of some releases, with a patch of its own.
                steps.add(max(2, length))
            if not steps.active:
                continue
            steps.context.initialize_attention_state()
            _, expected = logits_and_rows(steps, unpatched_function)
            logits, rows = logits_and_rows(steps)
            assert (rows.shape, rows.dtype) == (expected.shape, expected.dtype)
            assert rows.equal(expected)
            seen["view" if is_part_of(rows, logits) else "gathered"] += 1
            steps.end([chance.random() < probability for _ in range(steps.active)])

    compare()
    assert seen["gathered"] > 20, seen
    # Requests with several tokens each have several rows only since 0.18.
    assert seen["view"] > 5 or (name == "speculative" and not ON_HOST), seen


@pytest.mark.skipif(not ON_HOST, reason=f"{RELEASE} has no padded rows")
def test_padding_reads_the_first_row(unpatched_function):
    steps = decode_step(requests=3, num_cuda_graphs=2, max_requests=16)
    assert steps.context.padded_active_request_count > 3
    logits, rows = logits_and_rows(steps)
    assert rows.equal(logits_and_rows(steps, unpatched_function)[1])
    assert rows[3].equal(logits[0, 0])


@pytest.mark.skipif(not ON_HOST, reason=f"{RELEASE} does not know that it captures")
def test_what_is_captured_keeps_the_index():
    steps = decode_step()
    steps.context.is_creating_cuda_graphs = True
    logits, rows = logits_and_rows(steps)
    assert not is_part_of(rows, logits)
    assert rows.equal(logits[0, :4])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tokens_and_logits_are_bit_identical(unpatched, spec):
    try:
        assert_patches_change_no_output(spec)
    except testing.UnsupportedError as error:
        pytest.skip(str(error))


# ------------------------------------------------------------------------ the record


def test_changed_source_is_left_alone():
    verdict = judge(LAST_TOKEN_LOGITS_VIEW, with_one_token_changed(TARGET))
    assert verdict.family is None
    assert verdict.state is State.DRIFTED
