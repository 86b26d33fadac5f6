"""Requests with ``num_tokens_total`` and a suspension, on whichever release is installed.

From 0.17 on these tests run upstream's own code.
"""

from __future__ import annotations

from typing import Any

import pytest
from packaging.version import Version

from megatron_patch import testing
from megatron_patch.backports.upstream.resumed_total_tokens import RESUMED_TOTAL_TOKENS
from megatron_patch.testing.releases import context_parameters, engine_class

from ..conftest import RELEASE
from .checks import assert_state_of_record, needs, proof

pytestmark = pytest.mark.usefixtures("device")

PROMPT, TOTAL = (5, 6, 7), 12
#: ``num_tokens`` of ``Request`` is for the reference only.
REQUEST = testing.Request(
    PROMPT, TOTAL - 3, sampling={"num_tokens_total": TOTAL, "num_tokens_to_generate": None}
)
OTHER = testing.Request((9, 10), 6)


def decode(*, suspend_at: tuple[int, ...], max_requests: int = 8) -> tuple[tuple[int, ...], ...]:
    needs(hasattr(engine_class(), "suspend"), "suspend()")
    frees = "kv_cache_management_mode" in context_parameters()
    mode = "recompute" if frees else None
    engine = testing.build_engine(
        testing.EngineSpec(kv_cache_management_mode=mode, max_requests=max_requests)
    )

    def on_step(engine: Any, step: int) -> None:
        if step in suspend_at:
            testing.suspend(engine)
            testing.resume(engine)

    requests = [REQUEST, OTHER, *[REQUEST] * 4]
    return testing.decode(engine, requests, on_step=on_step, capture_logits=False).tokens


def expected() -> tuple[tuple[int, ...], ...]:
    one, other = testing.reference_decode(
        testing.build_model(testing.EngineSpec()), [REQUEST, OTHER]
    )
    return (one, other, one, one, one, one)


def test_state():
    engine_class()
    assert_state_of_record(RESUMED_TOTAL_TOKENS)


@proof
@pytest.mark.parametrize("suspend_at", [(0,), (1,), (4,), (2, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("max_requests", [4, 8], ids=["some wait", "none waits"])
def test_a_request_ends_at_its_total(suspend_at, max_requests):
    assert decode(suspend_at=suspend_at, max_requests=max_requests) == expected()


@pytest.mark.skipif(RELEASE < Version("0.16"), reason=f"{RELEASE} has no suspend()")
def test_nothing_changes_as_long_as_the_engine_is_not_suspended(unpatched):
    assert decode(suspend_at=()) == expected()


@pytest.mark.skipif(RELEASE.release[:2] != (0, 16), reason=f"{RELEASE} is resumed")
def test_unpatched_resuming_raises(unpatched):
    with pytest.raises(AssertionError):
        decode(suspend_at=(2,))
