"""Random lives of a context, with and without an engine: its views are never stale, nothing leaks.

After each step the getter is compared with slices that are made on the spot, and every storage
tensor that was ever seen and is not the context's any more must be gone.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from packaging.version import Version

import megatron_patch
from megatron_patch import testing
from megatron_patch.testing.decoding import add_request, has_work, stepper
from megatron_patch.testing.event_loop import settle
from tools.benchmarking import selected

from ..conftest import SOURCE
from .test_input_position_view_cache import PATCHED, RELEASE, deallocating_modes, storage

pytestmark = [
    pytest.mark.about("input-position-view-cache"),
    pytest.mark.usefixtures("device"),
]

# Where the source is patched, installing changes nothing: fewer lives are enough.
EXAMPLES = settings().max_examples // (2 if SOURCE else 1)
NAMES = ("token_to_input_ids", "token_to_pos_ids")
HAS_TRANSFER = RELEASE >= Version("0.18")
IS_SUSPENDABLE = RELEASE >= Version("0.16")
MODES = [{}, *deallocating_modes()]

# From the greatest number of requests, which 0.17 and later assert, to the most tokens of a step.
token_counts = st.integers(8, 64)
lengths = st.integers(2, 40)  # unpatched, 0.17 fails with 1
names = st.sampled_from(NAMES)
values = st.integers(0, 100)


class ContextLife(RuleBasedStateMachine):
    """The life of a context without an engine."""

    happened: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[weakref.ref[object]] = []
        self.is_installed = True
        self.is_deallocated = False
        # While the patch is not installed, nobody looks after what it left in contexts.
        self.keeps_house = True

    @initialize(fields=st.sampled_from(MODES), tokens=token_counts)
    def build(self, fields, tokens):
        megatron_patch.install()
        self.context = self.make(testing.EngineSpec(**fields))
        self.context.padded_active_token_count = tokens
        assert self.context._input_position_views == {}

    def make(self, spec):
        return testing.build_context(spec)

    def deallocate_storage(self):
        if RELEASE < Version("0.17"):
            self.context.deallocate_all_tensors()
        else:
            self.context.deallocate_inference_state_buffers()

    def allocate_storage(self):
        if RELEASE < Version("0.17"):
            self.context.allocate_all_tensors(is_init=False)
        else:
            self.context.reinitialize_inference_state_buffers()

    def is_idle(self):
        return not self.is_deallocated

    def teardown(self):
        megatron_patch.install()

    # -------------------------------------------------------------- what may happen

    @rule(tokens=token_counts)
    def change_the_token_count(self, tokens):
        self.context.padded_active_token_count = tokens

    @rule(tokens=token_counts)
    def warm_up(self, tokens):
        if self.has_storage():
            self.check_views(tokens, num_warmup_tokens=tokens)

    @precondition(lambda self: self.has_storage())
    @rule(name=names, value=values)
    def write(self, name, value):
        getattr(storage(self.context), name).fill_(value)

    @precondition(lambda self: self.is_idle())
    @rule(tokens=token_counts)
    def reset(self, tokens):
        self.context.reset()
        self.context.padded_active_token_count = tokens

    def may_be_deallocated(self):
        return IS_SUSPENDABLE and not self.is_deallocated

    @precondition(lambda self: self.may_be_deallocated())
    @rule()
    def deallocate(self):
        self.deallocate_storage()
        self.is_deallocated = True
        self.happened["deallocate"] += 1

    @precondition(lambda self: self.is_deallocated)
    @rule(tokens=token_counts)
    def allocate(self, tokens):
        had_storage = self.has_storage()
        self.allocate_storage()
        self.is_deallocated = False
        self.happened["allocate"] += 1
        self.context.padded_active_token_count = tokens
        if not had_storage and self.is_installed:
            self.keeps_house = True

    @precondition(lambda self: PATCHED and self.has_storage())
    @rule(name=names)
    def replace_the_storage_behind_every_hook(self, name):
        old = getattr(storage(self.context), name)
        setattr(storage(self.context), name, old.clone())
        self.happened["replace"] += 1

    @precondition(lambda self: HAS_TRANSFER and not self.is_deallocated)
    @rule(value=values)
    def transfer(self, value):
        self.context.token_to_input_ids.fill_(value)
        self.context.token_to_pos_ids.fill_(value)
        self.context.transfer_bookkeeping_to_gpu()
        self.happened["transfer"] += 1

    @precondition(lambda self: self.is_installed)
    @rule()
    def uninstall(self):
        megatron_patch.uninstall()
        self.is_installed = False
        self.keeps_house = not PATCHED

    @precondition(lambda self: not self.is_installed)
    @rule()
    def install(self):
        megatron_patch.install()
        self.is_installed = True

    # -------------------------------------------------------------- what must hold

    def has_storage(self):
        return hasattr(storage(self.context), NAMES[0])

    @invariant()
    def views_are_right_and_nothing_else_is_kept(self):
        # In this order: the call notices what no hook has seen.
        self.check_call()
        self.check_what_is_kept()

    def check_call(self):
        if self.has_storage():
            self.check_views(self.context.padded_active_token_count)
        else:
            with pytest.raises(AttributeError, match=NAMES[0]):
                self.context.current_input_and_position_ids()

    def check_views(self, tokens, **arguments):
        views = self.context.current_input_and_position_ids(**arguments)
        for view, name in zip(views, NAMES, strict=True):
            expected = getattr(storage(self.context), name)[:tokens].unsqueeze(0)
            assert view.data_ptr() == expected.data_ptr()
            assert view.shape == expected.shape
            assert view.stride() == expected.stride()
            assert view.dtype == expected.dtype
            assert view.equal(expected)
        if self.is_installed or not PATCHED:
            again = self.context.current_input_and_position_ids(**arguments)
            assert again[0] is views[0]
            assert again[1] is views[1]
            self.keeps_house = True

    def check_what_is_kept(self):
        current = [getattr(storage(self.context), name, None) for name in NAMES]
        self.seen = [seen for seen in self.seen if seen() is not None]
        for tensor in current:
            if tensor is not None and not any(seen() is tensor for seen in self.seen):
                self.seen.append(weakref.ref(tensor))
        if not self.keeps_house:
            return
        if current[0] is None:
            assert self.context._input_position_views == {}
        for views in self.context._input_position_views.values():
            for view, tensor in zip(views, current, strict=True):
                kept = view.untyped_storage().data_ptr()
                assert kept == tensor.untyped_storage().data_ptr()
        if len(self.seen) > sum(tensor is not None for tensor in current):
            gc.collect()
        alive = [seen() for seen in self.seen]
        assert all(any(a is c for c in current) for a in alive if a is not None)


class EngineLife(ContextLife):
    """The life of the context of an engine that decodes."""

    happened: ClassVar[Counter[str]] = Counter()

    def make(self, spec):
        self.engine = testing.build_engine(spec)
        return self.engine.context

    def deallocate_storage(self):
        testing.suspend(self.engine)

    def allocate_storage(self):
        testing.resume(self.engine)

    def may_be_deallocated(self):
        # 0.16 does not begin a prompt anew of which some chunks are done: a later step fails.
        is_between_chunks = getattr(self.context, "chunked_prefill_request_id", -1) != -1
        return super().may_be_deallocated() and not (
            is_between_chunks and RELEASE < Version("0.17")
        )

    def is_idle(self):
        return not self.is_deallocated and not has_work(self.engine)

    @precondition(lambda self: not self.is_deallocated)
    @rule(length=lengths, tokens=st.integers(1, 6))
    def add_a_request(self, length, tokens):
        add_request(self.engine, testing.Request(tuple(range(1, length + 1)), tokens), {})

    @precondition(lambda self: not self.is_deallocated)
    @rule(length=lengths, steps=st.integers(1, 6))
    def decode(self, length, steps):
        if not has_work(self.engine):
            add_request(self.engine, testing.Request(tuple(range(1, length + 1)), steps), {})
        for _ in range(steps):
            if has_work(self.engine):
                stepper(self.engine, {})()
                self.happened["decode"] += 1

    def teardown(self):
        if hasattr(self, "engine"):
            settle(self.engine._loop)
        super().teardown()


@pytest.fixture
def alone():
    """Only this patch in the series: lives install it often."""
    with selected("input-position-view-cache"):
        yield


@pytest.mark.parametrize("life", [ContextLife, EngineLife])
def test_views_are_never_stale_and_nothing_leaks(alone, life):
    # Without Phase.explain: it takes minutes, to name lines of PyTorch.
    phases = [phase for phase in Phase if phase is not Phase.explain]
    run_state_machine_as_test(
        life,
        settings=settings(max_examples=EXAMPLES * 2 // 5, stateful_step_count=30, phases=phases),
    )
    expected = {
        "deallocate": IS_SUSPENDABLE,
        "allocate": IS_SUSPENDABLE,
        "replace": PATCHED,
        "transfer": HAS_TRANSFER,
        "decode": life is EngineLife,
    }
    often = {name for name, times in life.happened.items() if times >= max(1, EXAMPLES // 100)}
    assert often == {name for name, is_expected in expected.items() if is_expected}
