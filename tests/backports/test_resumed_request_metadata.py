"""Where requests end after a suspension, on whichever release is installed.

From 0.18 on these tests run upstream's own code: it has to do the same.
"""

from __future__ import annotations

import pytest
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.resumed_request_metadata import RESUMED_REQUEST_METADATA
from megatron_patch.testing.releases import context_parameters, engine_class

from ..conftest import RELEASE, expected_state
from .checks import needs, proof, state_of

SUSPENDS = RELEASE >= Version("0.16")
PATCHED = SUSPENDS and RELEASE < Version("0.18")
MODES = [None] if RELEASE < Version("0.17") else ["persist", "offload", "recompute"]
# The mode in which the context's tensors are allocated anew afterwards.
FREEING = MODES[-1]

PROMPT = tuple(range(7, 27))
NUM_TOKENS = 9

pytestmark = pytest.mark.usefixtures("device")
only_suspending = pytest.mark.skipif(not SUSPENDS, reason=f"{RELEASE} has no suspend()")
only_patched = pytest.mark.skipif(
    not PATCHED, reason=f"{RELEASE} has no suspend(), or ends requests where it should"
)


def build(mode: str | None = FREEING):  # type: ignore[no-untyped-def]
    spec = testing.EngineSpec(kv_cache_management_mode=mode)
    return testing.build_engine(spec)


def decode(engine, termination_id: int = -1, suspend_at: int | None = None) -> tuple[int, ...]:  # type: ignore[no-untyped-def]
    """The tokens of a request; the engine may be suspended and resumed in between."""

    def on_step(engine, step: int) -> None:  # type: ignore[no-untyped-def]
        if step == suspend_at:
            testing.suspend(engine)
            testing.resume(engine)

    request = testing.Request(PROMPT, NUM_TOKENS)
    sampling = {"termination_id": termination_id}
    decoded = testing.decode(
        engine, [request], on_step=on_step, capture_logits=False, sampling=sampling
    )
    return decoded.tokens[0]


@pytest.fixture(scope="module")
def all_tokens(device):  # type: ignore[no-untyped-def]
    model = testing.build_model(testing.EngineSpec())
    (tokens,) = testing.reference_decode(model, [testing.Request(PROMPT, NUM_TOKENS)])
    # The tests below end it at the fifth.
    assert tokens.index(tokens[4]) == 4
    return tokens


def test_state():
    engine_class()
    expected = State.NOT_APPLICABLE if not SUSPENDS else State.APPLIED
    expected = State.UPSTREAMED if RELEASE >= Version("0.18") else expected
    assert state_of(RESUMED_REQUEST_METADATA) is expected_state(expected)


@only_suspending
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suspend_at", [None, 0, 2], ids=["before", "first step", "half-way"])
def test_a_request_ends_at_its_termination_id(all_tokens, mode, suspend_at):
    engine = build(mode)
    assert decode(engine) == all_tokens
    testing.suspend(engine)
    testing.resume(engine)
    assert decode(engine, all_tokens[4], suspend_at) == all_tokens[:5]


@only_suspending
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suspend_at", [None, 0, 2], ids=["before", "first step", "half-way"])
def test_a_request_does_not_end_at_that_of_another(all_tokens, mode, suspend_at):
    engine = build(mode)
    assert decode(engine, all_tokens[4]) == all_tokens[:5]
    testing.suspend(engine)
    testing.resume(engine)
    assert decode(engine, suspend_at=suspend_at) == all_tokens


@proof
@pytest.mark.parametrize("first", [False, True], ids=["ends", "goes on"])
def test_each_request_ends_at_its_own_termination_id(all_tokens, first):
    """The one before a suspension, and the one after it, of which one has such an id."""
    needs(hasattr(engine_class(), "suspend"), "suspend()")
    frees = "kv_cache_management_mode" in context_parameters()
    engine = build("recompute" if frees else None)
    ends = [(all_tokens[4], all_tokens[:5]), (-1, all_tokens)]
    for index, (termination_id, tokens) in enumerate(ends if first else reversed(ends)):
        if index:
            testing.suspend(engine)
            testing.resume(engine)
        assert decode(engine, termination_id) == tokens


@only_patched
def test_unpatched_a_request_goes_on_beyond_its_termination_id(unpatched, all_tokens):
    engine = build()
    assert decode(engine) == all_tokens
    testing.suspend(engine)
    testing.resume(engine)
    assert decode(engine, all_tokens[4]) == all_tokens


@only_patched
def test_unpatched_a_request_ends_at_the_termination_id_of_another(unpatched, all_tokens):
    engine = build()
    assert decode(engine, all_tokens[4]) == all_tokens[:5]
    testing.suspend(engine)
    testing.resume(engine)
    assert decode(engine) == all_tokens[:5]


@only_patched
@pytest.mark.parametrize("mode", MODES)
def test_nothing_changes_as_long_as_the_engine_is_not_suspended(unpatched, all_tokens, mode):
    engine = build(mode)
    ends = [-1, all_tokens[4], all_tokens[6], -1]
    without = [decode(engine, end) for end in ends]
    megatron_patch.install()
    assert [decode(engine, end) for end in ends] == without
