"""How many tokens a request gets in speculative decoding, on whichever release is installed.

From 0.18 on these tests run upstream's own code.
"""

from __future__ import annotations

import pytest

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.upstream.accepted_tokens_once import ACCEPTED_TOKENS_ONCE
from megatron_patch.testing.releases import engine_class

from . import speculating
from .checks import assert_state_of_record, proof

pytestmark = pytest.mark.usefixtures("device")

#: Requests for one token up to fourteen, in engines that take eight at a time.
REQUESTS = [testing.Request((5, 6, 7, 8 + n), n) for n in range(1, 15)]


@pytest.fixture
def speculative(device) -> None:  # type: ignore[no-untyped-def]
    speculating.needs_speculative_tokens()


def test_state(device):
    engine_class()
    assert_state_of_record(ACCEPTED_TOKENS_ONCE)


@proof
@pytest.mark.parametrize("count", [1, 2, 3])
def test_requests_get_all_their_tokens(speculative, count):
    engine = testing.build_engine(speculating.spec(count))
    tokens = testing.decode(engine, REQUESTS, capture_logits=False).tokens
    assert [len(found) for found in tokens] == [request.num_tokens for request in REQUESTS]
    speculating.accept_all(engine)
    tokens = testing.decode(engine, REQUESTS, capture_logits=False).tokens
    assert tokens == tuple((0,) * request.num_tokens for request in REQUESTS)


def test_so_they_get_beside_prompts_in_chunks(speculative):
    engine = testing.build_engine(speculating.spec(2, enable_chunked_prefill=True))
    speculating.accept_all(engine)
    requests = [
        testing.Request((5, 6, 7), 20),
        testing.Request(tuple(i * i % 127 for i in range(100)), 8, arrival_step=2),
    ]
    tokens = testing.decode(engine, requests, capture_logits=False).tokens
    assert tokens == ((0,) * 20, (0,) * 8)


def test_they_are_those_of_the_model_alone(speculative):
    requests = REQUESTS[6:9]
    tokens = testing.decode(testing.build_engine(speculating.spec(2)), requests).tokens
    model = testing.build_model(speculating.spec(2))
    assert tokens == tuple(testing.reference_decode(model, requests))


def test_without_speculative_tokens_nothing_changes(unpatched):
    spec = testing.EngineSpec()
    without = testing.decode(testing.build_engine(spec), REQUESTS[:6])
    megatron_patch.install()
    found = testing.decode(testing.build_engine(spec), REQUESTS[:6])
    assert found.tokens == without.tokens
    assert found.steps == without.steps
