"""Requests that are refused right before a suspension, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_patch import testing
from megatron_patch.backports.ours.suspended_refused_requests import SUSPENDED_REFUSED_REQUESTS
from megatron_patch.testing.decoding import add_request, has_work, stepper
from megatron_patch.testing.event_loop import settle
from megatron_patch.testing.releases import context_parameters, engine_class

from .checks import assert_state_of_record, needs, proof
from .serving import of_future

pytestmark = pytest.mark.usefixtures("device")

GOOD = testing.Request((5, 6, 7, 8), 9)
OTHER = testing.Request((9, 10), 6)
#: Longer than a sequence may be.
TOO_LONG = testing.Request(tuple(range(1, 141)), 1)
HAS_MODES = "kv_cache_management_mode"


def build(mode: str | None = "recompute", **fields: Any) -> Any:
    needs(hasattr(engine_class(), "suspend"), "suspend()")
    if HAS_MODES not in context_parameters():
        needs(mode in ("recompute", None), "modes of a suspension")
        mode = None
    spec = testing.EngineSpec(
        **{"max_tokens": 256, "max_sequence_length": 128, HAS_MODES: mode, **fields}
    )
    return testing.build_engine(spec)


def suspend(engine: Any, times: int = 1) -> None:
    for _ in range(times):
        testing.suspend(engine)
        testing.resume(engine)


def expected() -> list[tuple[int, ...]]:
    model = testing.build_model(testing.EngineSpec(max_sequence_length=128))
    return list(testing.reference_decode(model, [GOOD, OTHER]))


def test_state():
    engine_class()
    assert_state_of_record(SUSPENDED_REFUSED_REQUESTS)


def serve(engine: Any, *, steps: int, refused: int, times: int = 1) -> tuple[list[Any], list[int]]:
    """Serve GOOD, requests that are refused after ``steps`` steps, and OTHER, added last.

    Returns what became of each, and the ids of the refused requests that the steps have returned.
    """
    step = stepper(engine, {})
    futures = [add_request(engine, GOOD, {})]
    for _ in range(steps):
        step()
    futures += [add_request(engine, TOO_LONG, {}) for _ in range(refused)]
    suspend(engine, times)
    futures.append(add_request(engine, OTHER, {}))
    returned: list[int] = []
    while has_work(engine):
        result = step()
        records = result.get("finished_requests", result.get("finished_request_records"))
        parts = [getattr(record, "requests", [record])[-1] for record in records]
        returned += [part.request_id for part in parts if part.status.name == "FAILED"]
    settle(engine._loop)
    return [of_future(future) for future in futures], returned


@proof
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_it_is_returned_once_and_the_others_go_on(steps):
    good, *bad, other = serve(build(), steps=steps, refused=1)[0]
    assert [good.tokens, other.tokens] == expected()
    assert [(found.status, found.tokens) for found in bad] == [("FAILED", ())]


@pytest.mark.parametrize("mode", ["persist", "offload", "recompute"])
@pytest.mark.parametrize("refused", [1, 3])
@pytest.mark.parametrize("times", [1, 2])
def test_in_each_mode(mode, refused, times):
    (good, *bad, other), returned = serve(build(mode), steps=2, refused=refused, times=times)
    assert [good.tokens, other.tokens] == expected()
    assert [found.status for found in bad] == ["FAILED"] * refused
    assert len(returned) == len(set(returned)) == refused


def test_a_refused_request_that_was_returned_is_as_before(unpatched):
    """The patch is not about this case: a step comes between the refusal and the suspension."""
    engine = build()
    step = stepper(engine, {})
    good = add_request(engine, GOOD, {})
    bad = add_request(engine, TOO_LONG, {})
    step()
    suspend(engine)
    while has_work(engine):
        step()
    settle(engine._loop)
    assert of_future(good).tokens == expected()[0]
    assert of_future(bad).status == "FAILED"
