"""Where requests go after an engine has left, on whichever release is installed.

From 0.19 on these tests run upstream's own code.
"""

from __future__ import annotations

import pytest

from megatron_patch.backports.upstream.removed_engine_routing import REMOVED_ENGINE_ROUTING

from .checks import assert_state_of_record, proof
from .coordinators import (
    PROMPTS,
    Client,
    Coordinator,
    Engine,
    coordinator_class,
    policy,
    without_affinity,
)

pytestmark = pytest.mark.usefixtures("device")

#: Whether the engine announces that it leaves.
LEAVES = [pytest.param(True, id="goodbye"), pytest.param(False, id="vanished")]
POLICIES = ["FIRST_PREFIX_BLOCK", "LONGEST_PREFIX"]


def test_state():
    coordinator_class()
    assert_state_of_record(REMOVED_ENGINE_ROUTING)


@proof
@pytest.mark.parametrize("says_goodbye", LEAVES)
@pytest.mark.parametrize("name", POLICIES)
def test_requests_that_fit_it_go_to_another_engine(says_goodbye, name):
    with Coordinator(prefix_caching_coordinator_policy=policy(name)) as coordinator:
        client = Client(coordinator)
        assert client.is_served_by(PROMPTS[0]) == 0
        coordinator.engines[0].end(says_goodbye)
        assert [client.is_served_by(prompt) for prompt in PROMPTS[:2] * 2] == [1] * 4


@proof
def test_an_engine_that_said_goodbye_gets_no_request_while_it_is_connected():
    with Coordinator() as coordinator:
        client = Client(coordinator)
        assert client.is_served_by(PROMPTS[0]) == 0
        coordinator.engines[0].leave()
        assert client.is_served_by(PROMPTS[0]) == 1
        assert coordinator.engines[0].has_nothing()


@pytest.mark.parametrize("says_goodbye", LEAVES)
def test_other_engines_keep_their_prefixes(says_goodbye):
    with Coordinator(3) as coordinator:
        client, engines = Client(coordinator), coordinator.engines
        # One request to each: the next engine is always the one with the least to do.
        for prompt in PROMPTS[:3]:
            client.submit(prompt)
        requests = [engine.request() for engine in engines]
        for engine, request in zip(engines, requests, strict=True):
            engine.reply(request)
        assert sorted(client.answer()[1] for _ in engines) == sorted(map(str, requests))
        coordinator.engines[1].end(says_goodbye)
        assert client.is_served_by(PROMPTS[0]) == 0
        assert client.is_served_by(PROMPTS[2]) == 2
        assert client.is_served_by(PROMPTS[1]) in (0, 2)
        # The engine that got it now has the prefix cached.
        known = client.is_served_by(PROMPTS[1])
        assert [client.is_served_by(PROMPTS[1]) for _ in range(3)] == [known] * 3


@pytest.mark.parametrize("says_goodbye", LEAVES)
def test_other_engines_keep_their_loads(says_goodbye):
    with Coordinator(3, prefix_caching_routing_alpha=0.0) as coordinator:
        client, engines = Client(coordinator), coordinator.engines
        for prompt in PROMPTS[:3]:
            client.submit(prompt)
        requests = [engine.request() for engine in engines]
        engines[2].reply(requests[2])
        client.answer()
        coordinator.engines[0].end(says_goodbye)
        # The last engine has nothing to do, and the second one request.
        assert client.is_served_by(PROMPTS[3]) == 2
        client.submit(PROMPTS[3])
        engines[2].request()
        # Both engines have one request now, and the first of them gets the next.
        engines[1].reply(requests[1])
        assert client.answer() == (1, str(requests[1]))
        assert [client.is_served_by(PROMPTS[4]) for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("says_goodbye", LEAVES)
def test_an_engine_that_comes_back_starts_anew(says_goodbye):
    with Coordinator() as coordinator:
        client = Client(coordinator)
        assert client.is_served_by(PROMPTS[0]) == 0
        coordinator.engines[0].end(says_goodbye)
        assert client.is_served_by(PROMPTS[0]) == 1
        coordinator.engines[0] = Engine(coordinator, "engine-0")
        coordinator.has(2)
        assert client.is_served_by(PROMPTS[0]) == 1
        client.submit(PROMPTS[0])
        client.submit(PROMPTS[1])
        request = coordinator.engines[1].request()
        coordinator.engines[0].request()
        coordinator.engines[1].reply(request)
        assert client.answer()[1] == str(request)


def test_without_affinity_it_goes_on_as_before():
    with Coordinator(prefix_caching_coordinator_policy=without_affinity()) as coordinator:
        client = Client(coordinator)
        coordinator.engines[0].vanish()
        assert [client.is_served_by(prompt) for prompt in PROMPTS] == [1] * len(PROMPTS)


def test_without_engines_it_ends_as_before():
    with Coordinator() as coordinator:
        client = Client(coordinator)
        for index in range(2):
            coordinator.engines[index].vanish()
        client.submit(PROMPTS[0])
        assert coordinator.has_ended()
