"""Requests that come back longer than one step, on whichever release is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from packaging.version import Version

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.ours.evicted_long_requests import EVICTED_LONG_REQUESTS
from megatron_patch.testing.releases import context_parameters, engine_class

from ..conftest import RELEASE
from ..upstream import support
from .checks import assert_state_of_record, needs, proof
from .serving import has_paused_buffer, serve, spec_of

pytestmark = pytest.mark.usefixtures("device")

EVICTS = RELEASE >= Version("0.16")
only_evicting = pytest.mark.skipif(not EVICTS, reason=f"{RELEASE} evicts no requests")

#: With 7 blocks the second one is evicted with 65 tokens, where a step has 64.
GROWING = testing.Request(tuple(range(60, 90)), 40)
LONG = testing.Request(tuple(range(50)), 40)
BEHIND = [testing.Request((4, 5), 4), testing.Request((7, 8, 9), 6)]


def build(blocks: int = 8, **fields: Any) -> Any:
    needs(has_paused_buffer(), "an engine that evicts requests")
    return testing.build_engine(spec_of(blocks, **{"max_tokens": 64, **fields}))


def reference(
    requests: list[testing.Request], tokens: Sequence[tuple[int, ...] | None], **fields: Any
) -> list[tuple[int, ...]]:
    """What the model alone decodes, where the engine has decoded ``tokens``."""
    model = testing.build_model(testing.EngineSpec(**fields))
    return [*testing.reference_decode(model, requests, tokens)]


def assert_served(engine: Any, requests: list[testing.Request], **fields: Any) -> None:
    free = support.free_blocks(engine.context)
    found = serve(engine, requests)
    tokens = [one and one.tokens for one in found]
    assert tokens == reference(requests, tokens, **fields)
    assert {one.status for one in found if one} == {"COMPLETED"}
    assert support.free_blocks(engine.context) == free
    assert engine.evicted_request_count > 0


def test_state():
    engine_class()
    assert_state_of_record(EVICTED_LONG_REQUESTS)


@proof
def test_an_evicted_request_that_has_outgrown_a_step_is_served():
    assert_served(build(), [GROWING, LONG, *BEHIND])


@only_evicting
@pytest.mark.parametrize("length", [48, 49, 62])
@pytest.mark.parametrize("num_tokens", [20, 40])
def test_requests_of_other_lengths(length, num_tokens):
    long = testing.Request(tuple(range(length)), num_tokens)
    assert_served(build(), [GROWING, long, *BEHIND])


@only_evicting
def test_two_of_them():
    other = testing.Request(tuple(range(20, 72)), 35)
    assert_served(build(9), [GROWING, LONG, other, *BEHIND])


@only_evicting
def test_more_than_two_chunks():
    requests = [
        testing.Request(tuple(range(60, 90)), 150),
        testing.Request(tuple(range(60)), 150),
        *BEHIND,
    ]
    assert_served(build(18, max_sequence_length=256), requests, max_sequence_length=256)


SPECS: dict[str, dict[str, Any]] = {
    "graphs": {"num_cuda_graphs": 2},
    "paused buffer": {"blocks": 9, "paused": 1},
    "prefix caching": {"enable_prefix_caching": True},
    "speculative": {
        "blocks": 9,
        "num_speculative_tokens": 2,
        "materialize_only_last_token_logits": False,
    },
    "asynchronous": {"options": {"async_sched_mode": "async"}},
}


@only_evicting
@pytest.mark.parametrize("name", SPECS)
def test_engines_of_other_kinds(name):
    fields = SPECS[name]
    for field in ("enable_prefix_caching", "num_speculative_tokens"):
        if field in fields:
            needs(field in context_parameters(), field)
    if "options" in fields:
        needs("async_sched_mode" in context_parameters(), "asynchronous scheduling")
    found = serve(build(**fields), [GROWING, LONG, *BEHIND])
    # Speculative tokens come from further layers, so the model is another one.
    speculative = fields.get("num_speculative_tokens", 0)
    tokens = [one and one.tokens for one in found]
    requests = [GROWING, LONG, *BEHIND]
    assert tokens == reference(requests, tokens, num_speculative_tokens=speculative)


@proof
@pytest.mark.parametrize("suspend_at", [(20,), (20, 21), (3, 22)], ids=str)
def test_a_suspended_request_that_has_outgrown_a_step_is_served(suspend_at):
    needs(hasattr(engine_class(), "suspend"), "suspend()")
    frees = "kv_cache_management_mode" in context_parameters()
    spec = testing.EngineSpec(
        kv_cache_management_mode="recompute" if frees else None, enable_chunked_prefill=False
    )

    def on_step(engine: Any, step: int) -> None:
        if step in suspend_at:
            testing.suspend(engine)
            testing.resume(engine)

    requests = [LONG, GROWING, *BEHIND]
    engine = testing.build_engine(spec)
    decoded = testing.decode(engine, requests, on_step=on_step, capture_logits=False)
    assert [*decoded.tokens] == reference(requests, decoded.tokens)


@only_evicting
def test_prompts_of_others_are_not_split():
    """Not even while an evicted request is prefilled in chunks."""
    engine = build()
    queries = []
    add = engine.context.add_request

    def noted(request: Any, *args: Any, **kwargs: Any) -> None:
        grown = len(engine.requests[request.request_id].record.requests) > 1
        before = request.finished_chunk_token_count
        length = next(iter((*args, *kwargs.values())), None)
        queries.append((grown, before, length))
        add(request, *args, **kwargs)

    engine.context.add_request = noted
    serve(engine, [GROWING, LONG, *[testing.Request(tuple(range(40)), 3)] * 4])
    assert [(before, length) for grown, before, length in queries if not grown] == [(0, None)] * 6
    assert [length for grown, _, length in queries if grown and length is not None]


@only_evicting
def test_a_prompt_that_is_too_long_for_a_step_is_refused_as_before():
    found, other = serve(build(20), [testing.Request(tuple(range(70)), 3), BEHIND[0]])
    assert found == ("FAILED", (), ("TokenOverflowError",))
    assert other is not None
    assert other.status == "COMPLETED"


@only_evicting
@pytest.mark.parametrize("chunked", [False, True])
def test_nothing_changes_where_evicted_requests_fit(unpatched, chunked):
    requests = [testing.Request(tuple(range(30)), 40), testing.Request((1, 2), 50), *BEHIND]
    fields = {"enable_chunked_prefill": chunked, "max_tokens": 128}
    without = serve(build(**fields), requests)
    megatron_patch.install()
    assert serve(build(**fields), requests) == without


@only_evicting
def test_unpatched_it_blocks_the_queue(unpatched):
    engine = build()
    served, evicted = serve(engine, [GROWING, LONG])
    assert served is not None
    assert evicted is None
    assert engine.context.total_request_count == 0
    assert serve(engine, BEHIND, max_steps=20) == [None, None]
