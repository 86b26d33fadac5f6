"""Speculative tokens of the longest requests, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.ours.draft_positions import DRAFT_POSITIONS
from megatron_patch.testing.releases import engine_class

from . import speculating
from .checks import assert_state_of_record, proof

pytestmark = pytest.mark.usefixtures("device")

LONGEST = 64
#: They end in the last place of max_sequence_length, two of them at once; one ends earlier.
REQUESTS = [
    testing.Request(tuple(range(1, 42)), LONGEST - 41),
    testing.Request(tuple(range(3, 50)), LONGEST - 47, arrival_step=1),
    testing.Request(tuple(range(5, 49)), LONGEST - 44, arrival_step=2),
    testing.Request((7, 8), 5, arrival_step=2),
]


@pytest.fixture
def speculative(device: Any) -> None:
    speculating.needs_speculative_tokens()


def build(count: int, scheduling: str | None, **fields: Any) -> Any:
    options = speculating.options_of(scheduling)
    spec = speculating.spec(count, max_sequence_length=LONGEST, options=options, **fields)
    return testing.build_engine(spec)


def assert_all(tokens: tuple[tuple[int, ...], ...], expected: list[Any], missing: int) -> None:
    for found, right in zip(tokens, expected, strict=True):
        assert len(right) - missing <= len(found)
        assert found == tuple(right)[: len(found)]


def check(count: int, missing: int) -> None:
    model = testing.build_model(speculating.spec(count, max_sequence_length=LONGEST))
    for scheduling in speculating.schedulings():
        engine = build(count, scheduling)
        tokens = testing.decode(engine, REQUESTS).tokens
        assert_all(tokens, [*testing.reference_decode(model, REQUESTS, tokens)], missing)
        speculating.accept_all(engine)
        zeros = [(0,) * request.num_tokens for request in REQUESTS]
        assert_all(testing.decode(engine, REQUESTS).tokens, zeros, missing)
        assert engine.context.total_request_count == 0


def test_state(device):
    engine_class()
    assert_state_of_record(DRAFT_POSITIONS)


@proof
@pytest.mark.parametrize("count", [2, 3])
def test_requests_may_be_as_long_as_the_longest(speculative, count):
    """Whether a request lacks tokens at its end is the concern of `accepted-tokens-once`."""
    check(count, missing=count)


@pytest.mark.parametrize("count", [1, 2])
def test_they_get_all_their_tokens(speculative, count):
    check(count, missing=0)


@proof
def test_so_they_get_with_rotary_positions(speculative):
    zeros = [(0,) * request.num_tokens for request in REQUESTS]
    for scheduling in speculating.schedulings():
        engine = build(3, scheduling, position_embedding_type="rope")
        speculating.accept_all(engine)
        assert_all(testing.decode(engine, REQUESTS).tokens, zeros, missing=3)


def test_shorter_requests_get_what_they_got(speculative, unpatched):
    """Bit for bit."""
    requests = [testing.Request(r.prompt[:20], 7, r.arrival_step) for r in REQUESTS]
    without = testing.decode(build(2, None), requests)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MEGATRON_PATCH", DRAFT_POSITIONS.id)
        megatron_patch.install()
        found = testing.decode(build(2, None), requests)
        megatron_patch.uninstall()
    assert found.tokens == without.tokens
    assert all(one.equal(other) for one, other in zip(found.logits, without.logits, strict=True))
