"""What follows a decode step: the same bookkeeping from fewer operators.

Two contexts of Megatron's are led through the same steps. One keeps the unpatched method, and all
of its state has to be that of the other, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from types import MethodType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.ours.single_token_update import SINGLE_TOKEN_UPDATE, UPDATE
from megatron_patch.judge import judge
from megatron_patch.verdicts import Verdict
from tools.benchmarking import selected

from ..conftest import RELEASE, expected_state, not_in_source
from ..upstream import support
from .bookkeeping import assert_same, start_alike, state
from .checks import (
    Operators,
    as_it_is,
    assert_patches_change_no_output,
    assert_same_outputs,
    needs,
    proof,
    state_of,
    with_one_token_changed,
)

PATCHED = RELEASE >= Version("0.17")

ON_GPU = RELEASE < Version("0.18")

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} has no speculative tokens there")


def test_state():
    testing.context_class()
    assert state_of(SINGLE_TOKEN_UPDATE) is expected_state(
        State.APPLIED if PATCHED else State.NOT_APPLICABLE
    )


# ------------------------------------------------------------------------ what it costs


def operators_of_a_decode_step(count: int = 16, context: Any = None) -> Counter[str]:
    """Those of ``update_requests()`` when no request ends or needs a block."""
    spec = testing.EngineSpec(max_requests=16, max_tokens=192)
    context = context or testing.build_context(spec)
    for index in range(count):
        support.add(context, index, range(1, 3 + index % 5), num_tokens=20)
    for _ in range(2):
        context.initialize_attention_state()
        device = context.request_ids.device
        mask = torch.ones(count, dtype=torch.uint8, device=device)
        tokens = torch.arange(count, device=device)
        with Operators() as operators:
            context.update_requests(mask, tokens)
    return Counter(operators.names)


@only_patched
def test_a_decode_step_takes_fewer_operators_and_waits_less(device, unpatched):
    without = operators_of_a_decode_step()
    megatron_patch.install()
    patched = operators_of_a_decode_step()
    # Written to where they belong, or through an array of the same memory.
    in_place = ("aten::add_", "aten::remainder_", "aten::masked_fill_")
    instead = dict.fromkeys(in_place, 1) if ON_GPU else {"aten::detach": 1}
    if ON_GPU and device.type == "cuda":
        instead["aten::_to_copy"] = 2  # to read the two lists
    assert patched - without == instead
    assert without.total() - patched.total() >= (50 if ON_GPU else 60)
    # Each of these reads a number back: where the bookkeeping is on the GPU, the host waits for it.
    # Two lists are read instead: of which requests go on, and of which need a block.
    waits = "aten::_local_scalar_dense"
    assert without[waits] >= 4
    assert patched[waits] == 0


@only_patched
@pytest.mark.parametrize("value", [0, 1, 2, 255])
def test_a_mask_of_other_values_is_refused_as_ever(unpatched, value):
    """A mask may have 0 and 1 only. Controllers of others make masks of their own."""

    def outcome() -> object:
        context = testing.build_context(testing.EngineSpec())
        for index in range(3):
            support.add(context, index, range(1, 4), num_tokens=20)
        context.initialize_attention_state()
        mask = torch.tensor([1, value, 1], dtype=torch.uint8, device=context.request_ids.device)
        try:
            context.update_requests(mask, torch.arange(3, device=mask.device))
        except AssertionError as error:
            return repr(error)
        return context.total_request_count

    without = outcome()
    megatron_patch.install()
    assert outcome() == without
    assert (without in (2, 3)) == (value in (0, 1))


@proof
def test_a_decode_step_repeats_nothing_and_writes_its_tokens():
    context = testing.build_context(testing.EngineSpec())
    needs(hasattr(context, "num_speculative_tokens"), "speculative tokens in an update")
    context = testing.build_context(testing.EngineSpec(max_requests=16, max_tokens=192))
    counts = operators_of_a_decode_step(context=context)
    assert counts["aten::repeat"] == counts["aten::any"] == 0
    active = slice(0, context.active_token_count)
    assert context.token_to_input_ids[active].tolist() == [*range(16)]
    # After prompts of 2 to 6 tokens, the third token of each request.
    assert context.token_to_pos_ids[active].tolist() == [3 + index % 5 for index in range(16)]


@only_patched
def test_in_a_decode_step_nothing_is_repeated():
    counts = operators_of_a_decode_step()
    assert counts["aten::arange"] == (1 if ON_GPU else 0)
    assert counts["aten::repeat"] == counts["aten::any"] == 0


def test_a_default_device_of_the_process_does_not_matter():
    """As of `torch.set_default_device()`: the bookkeeping says itself where it is."""
    context = testing.build_context(testing.EngineSpec(max_requests=16, max_tokens=192))
    for index in range(4):
        support.add(context, index, range(1, 3 + index), num_tokens=20)
    context.initialize_attention_state()
    device = context.request_ids.device
    mask, tokens = torch.ones(4, dtype=torch.uint8, device=device), torch.arange(4, device=device)
    with torch.device("meta"):
        context.update_requests(mask, tokens)
    assert context.token_to_request_idx[:4].tolist() == [0, 1, 2, 3]
    assert context.token_to_pos_ids[:4].tolist() == [2, 3, 4, 5]


# ------------------------------------------------------------------------ what it does


@pytest.fixture
def unpatched_update(unpatched):
    """The function without this patch but with all others, which may edit it too."""
    testing.context_class()
    with selected("-single-token-update"):
        function = as_it_is(testing.context_class().update_requests)
    megatron_patch.install()
    assert testing.context_class().update_requests.__code__ is not function.__code__
    return function


class Twins:
    """Two contexts, the first with the unpatched method, that get the same requests and tokens."""

    def __init__(self, spec, unpatched_update):
        self.contexts = [testing.build_context(spec) for _ in range(2)]
        self.contexts[0].update_requests = MethodType(unpatched_update, self.contexts[0])
        start_alike(*self.contexts)
        self.chunked = None  # the requests still in prefill, and their next token
        self.request_id = 0
        self.seen = Counter()

    @property
    def context(self):
        return self.contexts[1]

    def add(self, length: int, in_chunks: bool) -> None:
        """Add a request as the engine does, if there is room; the first of two chunks of it."""
        one = self.context
        room = one.max_tokens - one.active_token_count
        requests = [support.request(self.request_id, range(1, 1 + length), 40) for _ in range(2)]
        fits = length <= room and all(one.check_availability(requests[0]))
        if self.chunked is not None or not fits:
            return
        self.request_id += 1
        for context, request in zip(self.contexts, requests, strict=True):
            if in_chunks:
                context.add_request(request, prefill_chunk_length=length // 2)
                context.chunked_prefill_request_id = request.request_id
                request.remaining_prompt_tokens = request.remaining_prompt_tokens[length // 2 :]
                request.finished_chunk_token_count += length // 2
            else:
                context.add_request(request)
        if in_chunks:
            self.chunked = requests
            self.seen["chunked"] += 1

    def continue_chunked(self) -> None:
        """Add the rest of the prompt that came in chunks, if there is room."""
        if self.chunked is None:
            return
        one, request = self.context, self.chunked[1]
        length = len(request.remaining_prompt_tokens)
        has_blocks = one.check_availability(request)[2]
        if one.active_token_count + length > one.max_tokens or not has_blocks:
            return
        for context, request in zip(self.contexts, self.chunked, strict=True):
            context.chunked_prefill_request_id = -1
            context.add_request(request)
        self.chunked = None

    def update(self, goes_on: list[bool], chance) -> bool:
        """Make one step; returns whether there can be another."""
        results = []
        speculative = self.context.num_speculative_tokens
        tokens = [[chance.randrange(100) for _ in goes_on] for _ in range(1 + speculative)]
        for context in self.contexts:
            context.initialize_attention_state()
            device = context.request_ids.device
            mask = torch.tensor(goes_on, dtype=torch.uint8, device=device)
            new = torch.tensor(tokens, device=device)
            try:
                results.append(
                    context.update_requests(mask, new[0], new[1:] if speculative else None)
                )
            except AssertionError as error:
                # There are not enough blocks to go on; Megatron's own, if it is one of both.
                results.append({"error": str(error)})
        assert_same(*results)
        assert_same(*map(state, self.contexts))
        result = results[0] or {}
        for name in ("newly_paused_request_ids", "evict_request_ids"):
            self.seen[name] += result.get(name) is not None
        self.seen["finished"] += not all(goes_on)
        return "error" not in result


sizes = st.builds(
    dict,
    max_requests=st.sampled_from([4, 8, 12]),
    block_size_tokens=st.sampled_from([4, 8, 16]),
    max_tokens=st.sampled_from([64, 192]),
    enable_chunked_prefill=st.just(True),
    # None: enough blocks for all. Otherwise some requests wait for a block, or are evicted.
    blocks=st.none() | st.integers(6, 16),
)
steps = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(2, 30), st.booleans()), max_size=4),
        st.sampled_from([0.5, 0.9, 1.0]),
        st.randoms(use_true_random=False),
    ),
    min_size=1,
    max_size=14,
)


def spec_of(blocks: int | None, block_size_tokens: int, **fields) -> testing.EngineSpec:
    size = None
    if blocks is not None:
        size = (blocks + 1.5) * 2 * 2 * block_size_tokens * 64 * 4 / 1024**3
    return testing.EngineSpec(buffer_size_gb=size, block_size_tokens=block_size_tokens, **fields)


@only_patched
@pytest.mark.parametrize("speculative", [0, 1, 3])
def test_any_steps_leave_the_state_of_the_unpatched_method(unpatched_update, speculative):
    seen: Counter[str] = Counter()

    @given(sizes=sizes, steps=steps)
    def compare(sizes, steps):
        twins = Twins(spec_of(num_speculative_tokens=speculative, **sizes), unpatched_update)
        for arrivals, probability, chance in steps:
            twins.continue_chunked()
            for length, in_chunks in arrivals:
                twins.add(length, in_chunks and length > 4)
            active = twins.context.total_request_count - twins.context.paused_request_count
            goes_on = [chance.random() < probability for _ in range(active)]
            if active and not twins.update(goes_on, chance):
                break
        seen.update(twins.seen)

    compare()
    for what in ("chunked", "finished", "newly_paused_request_ids", "evict_request_ids"):
        assert seen[what] > 5, (what, seen)


ENGINES = {
    "eager": {},
    "small blocks": {"block_size_tokens": 4},
    "padded": {"num_cuda_graphs": 4, "max_requests": 16},
    # An evicted request comes back with what it has generated, and needs that many tokens.
    "few blocks": {"block_size_tokens": 4, "blocks": 26, "max_tokens": 192},
    "in chunks": {"enable_chunked_prefill": True, "block_size_tokens": 8},
    "speculative": {"num_speculative_tokens": 2, "materialize_only_last_token_logits": False},
}
# Together more than a step takes in, and more than there is room for with few blocks.
BUSY = [
    testing.Request(prompt=tuple(range(1, 51)), num_tokens=24),
    testing.Request(prompt=tuple(range(7, 47)), num_tokens=20),
]
arrivals = st.lists(
    st.builds(
        testing.Request,
        prompt=st.integers(2, 60).map(lambda length: tuple(range(1, 1 + length))),
        num_tokens=st.integers(1, 24),
        arrival_step=st.integers(0, 12),
    ),
    max_size=4,
)


@only_patched
@pytest.mark.parametrize("name", ENGINES)
def test_engines_have_the_same_state_in_each_step_and_the_same_outputs(unpatched_update, name):
    spec = spec_of(**{"blocks": None, "block_size_tokens": 16, **ENGINES[name]})
    try:
        engines = [testing.build_engine(spec) for _ in range(2)]
    except testing.UnsupportedError as error:
        pytest.skip(str(error))
    without = engines[0].context
    without.update_requests = MethodType(unpatched_update, without)
    start_alike(*(engine.context for engine in engines))

    def run(engine, requests):
        states = []
        decoded = testing.decode(
            engine,
            requests,
            on_step=lambda engine, step: states.append(state(engine.context)),
            max_steps=400,
        )
        return decoded, states

    reached = Counter()

    @settings(
        max_examples=max(3, settings().max_examples // 30),
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(arrivals)
    def compare(requests):
        (expected, states), (patched, patched_states) = (
            run(engine, [*BUSY, *requests]) for engine in engines
        )
        assert_same_outputs(patched, expected)
        assert len(states) == len(patched_states)
        for one, other in zip(states, patched_states, strict=True):
            assert_same(one, other)
        prefix = f"{type(without).__name__}."
        reached["in chunks"] += any(
            one[f"{prefix}chunked_prefill_request_id"] >= 0 for one in states
        )
        reached["few blocks"] += any(len(getattr(r, "requests", ())) > 1 for r in patched.records)

    compare()
    assert reached[name] > 0 or name not in ("in chunks", "few blocks")


@only_patched
def test_tokens_and_logits_are_bit_identical(unpatched):
    spec = testing.EngineSpec()
    assert_patches_change_no_output(spec)


@only_patched
@not_in_source
def test_one_changed_token_in_the_target_is_drifted():
    judgement = judge(SINGLE_TOKEN_UPDATE, with_one_token_changed(UPDATE))
    assert judgement.verdict is Verdict.DRIFTED
    assert UPDATE in judgement.reason
