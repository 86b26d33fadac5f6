"""Chunks of a prompt that wait for memory, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_patch import testing
from megatron_patch.backports.upstream.hidden_chunk_overlap import HIDDEN_CHUNK_OVERLAP
from megatron_patch.testing.releases import context_parameters, engine_class

from .checks import assert_state_of_record, needs, proof
from .serving import gigabytes

pytestmark = pytest.mark.usefixtures("device")

BLOCK = 8
#: Two of the short ones take another block each in the step of the long one's first chunk. Then
#: there are not enough for its second.
SHORT = testing.Request(tuple(range(1, 23)), 16)
LONG = testing.Request(tuple(range(20, 120)), 6, arrival_step=2)


def run(*requests: testing.Request, blocks: int = 21, **options: Any) -> tuple[Any, int]:
    """The tokens of the requests, and the number of steps that a chunk waited."""
    size = gigabytes(blocks, testing.EngineSpec(block_size_tokens=BLOCK))
    spec = testing.EngineSpec(
        buffer_size_gb=size, block_size_tokens=BLOCK, enable_chunked_prefill=True, options=options
    )
    engine = testing.build_engine(spec)
    context, waited = engine.context, []

    def look(engine: Any, step: int) -> None:
        hidden = context.chunked_prefill_request_id
        active = context.request_ids[: context.total_request_count].tolist()
        waited.append(hidden != -1 and hidden not in active)

    found = testing.decode(engine, requests, on_step=look)
    return [tuple(tokens) for tokens in found.tokens], sum(waited)


def alone(*requests: testing.Request) -> list[tuple[int, ...]]:
    model = testing.build_model(testing.EngineSpec())
    return [tuple(tokens) for tokens in testing.reference_decode(model, requests)]


@pytest.fixture
def asynchronous() -> dict[str, Any]:
    needs("async_sched_mode" in context_parameters(), "asynchronous scheduling")
    from megatron.core.inference.config import AsyncScheduleMode

    # At first it had two modes with other names, which both refused prompts in chunks.
    modes = {mode.value for mode in AsyncScheduleMode}
    needs("async" in modes, "asynchronous scheduling of prompts in chunks")
    return {"async_sched_mode": "async"}


def test_state():
    engine_class()
    assert_state_of_record(HIDDEN_CHUNK_OVERLAP)


@proof
def test_a_chunk_waits_for_memory(asynchronous):
    found, waited = run(SHORT, SHORT, LONG, **asynchronous)
    assert found == alone(SHORT, SHORT, LONG)
    assert waited > 3


def test_a_chunk_waits_for_memory_without_it(asynchronous):
    found, waited = run(SHORT, SHORT, LONG)
    assert found == alone(SHORT, SHORT, LONG)
    assert waited > 3


@proof
def test_another_request_ends_while_it_waits(asynchronous):
    """The other request has the last row then, and must not be taken for the one that waits."""
    requests = (SHORT, SHORT, testing.Request((7, 8, 9), 12), LONG)
    found, waited = run(*requests, blocks=22, **asynchronous)
    assert found == alone(*requests)
    assert waited > 3


def test_with_memory_it_does_not_wait(asynchronous):
    found, _ = run(SHORT, LONG, blocks=60, **asynchronous)
    assert found == alone(SHORT, LONG)
