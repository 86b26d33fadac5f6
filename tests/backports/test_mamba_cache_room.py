"""A hybrid model's cache of Mamba states that is full, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.upstream.mamba_cache_room import MAMBA_CACHE_ROOM

from . import hybrids
from .checks import assert_state_of_record, needs, proof

pytestmark = pytest.mark.usefixtures("device")

#: Prompts that end where a block does, and so leave a Mamba state each.
REQUESTS = [testing.Request(tuple(range(8 * i, 8 * i + 16)), 4) for i in range(4)]
#: The same beginnings again, while the others are there, and after them.
AGAIN = [
    testing.Request((*range(8 * i, 8 * i + 16), 3, 5), 4, arrival_step=step)
    for i in range(4)
    for step in (2, 9)
]


def test_state():
    testing.context_class()
    assert_state_of_record(MAMBA_CACHE_ROOM)


@proof
@pytest.mark.parametrize("states", [1, 2, 3])
def test_more_prompts_than_there_is_room_for(states):
    spec = hybrids.caching(states)
    engine = testing.build_engine(spec)
    slots = engine.context.mamba_slot_allocator
    assert slots.max_slots == states
    hybrids.decode(engine, spec, REQUESTS + AGAIN)
    assert_consistent(slots)


def assert_consistent(slots: Any) -> None:
    """Each slot is free or belongs to one block, and each hash leads to a block that has a slot."""
    free = slots.free_slots[: slots.free_count].tolist()
    taken = slots.block_to_slot[slots.block_to_slot >= 0].tolist()
    assert sorted(free + taken) == list(range(slots.max_slots))
    assert all(slots.has_state(block) for block in slots.hash_to_block_id.values())


class Step:
    """A context in which a step with four prompts has been computed, and nothing cached yet."""

    def __init__(self, room: int) -> None:
        self.context = testing.build_engine(hybrids.caching(room)).context
        self.slots = self.context.mamba_slot_allocator
        for number, request in enumerate(REQUESTS):
            self.context.add_request(hybrids.request(self.context, number, request.prompt))
        self.context.initialize_attention_state()
        self.compute([1.0, 2.0, 3.0, 4.0])

    def compute(self, values: list[float]) -> None:
        """Let each request's live states have its value."""
        for states in (self.context.mamba_conv_states, self.context.mamba_ssm_states):
            for request, value in enumerate(values):
                states[:, self.live_slot(request)] = value

    def live_slot(self, request: int) -> int:
        return int(self.context.mamba_metadata.request_to_mamba_state_idx[request])

    def cached(self) -> list[float]:
        """The value of each request's cached state; 0 if there is none."""
        found = []
        for request in range(len(REQUESTS)):
            slot = self.slots.get_slot(int(self.context.request_to_kv_block_ids[request, 0]))
            found.append(float(self.slots.ssm_states[0, slot].max()) if slot >= 0 else 0.0)
        return found


@proof
@pytest.mark.parametrize("states", [1, 2, 3, 4, 5])
def test_as_many_states_are_cached_as_there_is_room_for(states):
    step = Step(states)
    step.slots.commit_intermediate_states()
    room = min(states, len(REQUESTS))
    cached = step.cached()
    assert cached == [1.0, 2.0, 3.0, 4.0][:room] + [0.0] * (4 - room)
    assert len(step.slots.hash_to_block_id) == room
    assert_consistent(step.slots)
    # Nothing of the step is left to be cached by the next one.
    step.compute([9.0] * 4)
    step.slots.commit_intermediate_states()
    assert step.cached() == cached


@proof
def test_what_is_cached_stays_and_what_nobody_uses_makes_room():
    step = Step(4)
    needs(hasattr(step.slots, "_collect_commit_data"), "states that are cached all at once")
    step.slots.commit_intermediate_states()
    allocator = step.context.kv_block_allocator
    first, second, *used = step.context.request_to_kv_block_ids[:4, 0].tolist()
    allocator.block_ref_counts[[first, second]] = 0
    kept = [step.slots.get_slot(block) for block in used]
    new = allocator.allocate_memory_blocks(3).tolist()
    # The next step ends these blocks: one twice, and among them two that are cached.
    collected = ([], [], [new[0], *used, new[0], *new[1:]], [0, 2, 3, 0, 1, 1], [0] * 6)
    step.slots._collect_commit_data = lambda: collected
    step.slots.commit_intermediate_states()
    assert [step.slots.has_state(block) for block in new] == [True, True, False]
    assert [step.slots.get_slot(block) for block in used] == kept
    assert [step.slots.has_state(block) for block in (first, second)] == [False, False]


def test_with_room_nothing_is_other(unpatched, monkeypatch):
    def run() -> tuple[Any, ...]:
        spec = hybrids.caching(8)
        engine = testing.build_engine(spec)
        decoded = testing.decode(engine, REQUESTS + AGAIN, capture_logits=False)
        slots = engine.context.mamba_slot_allocator
        return decoded.tokens, slots.block_to_slot.tolist(), slots.free_slots.tolist()

    without = run()
    monkeypatch.setenv("MEGATRON_PATCH", MAMBA_CACHE_ROOM.id)
    megatron_patch.install()
    assert run() == without
    megatron_patch.uninstall()
