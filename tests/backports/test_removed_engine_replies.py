"""Replies of engines that the coordinator has removed, on whichever release is installed."""

from __future__ import annotations

import pytest

from megatron_patch.backports.upstream.removed_engine_replies import REMOVED_ENGINE_REPLIES

from .checks import assert_state_of_record, proof
from .coordinators import (
    PROMPTS,
    SHORT,
    Client,
    Coordinator,
    Engine,
    coordinator_class,
    without_affinity,
)

pytestmark = pytest.mark.usefixtures("device")


def test_state():
    coordinator_class()
    assert_state_of_record(REMOVED_ENGINE_REPLIES)


@proof
def test_what_it_sent_before_it_was_found_gone_is_passed_on():
    with Coordinator(prefix_caching_coordinator_policy=without_affinity()) as coordinator:
        client, (first, second) = Client(coordinator), coordinator.engines
        client.submit(SHORT)
        client.submit(SHORT)
        requests = [first.request(), second.request()]
        # For the first engine again, and it keeps the coordinator busy until that engine has ended.
        client.submit("1 2 3")
        assert coordinator.tokenizer.asked.wait(20)
        first.reply(requests[0])
        first.vanish()
        coordinator.tokenizer.may_go_on.set()
        requests.append(second.request())
        assert client.answer() == (0, str(requests[0]))
        second.reply(*requests[1:])
        assert [client.answer() for _ in range(2)] == [(n, str(requests[n])) for n in (1, 2)]


@proof
def test_an_engine_that_was_removed_replies_later():
    with Coordinator(prefix_caching_coordinator_policy=without_affinity()) as coordinator:
        client, (first, second) = Client(coordinator), coordinator.engines
        for _ in range(3):
            client.submit(SHORT)
        # This engine has the first and the third request.
        requests = [first.request() for _ in range(2)]
        other = second.request()
        first.leave()
        for request in requests:
            first.reply(request)
        assert [client.answer() for _ in range(2)] == [(n, str(n)) for n in requests]
        client.submit(SHORT)
        second.reply(other, second.request())
        assert [client.answer() for _ in range(2)] == [(other, str(other)), (3, "3")]


def test_an_engine_comes_back_and_replies_to_a_request_of_before():
    with Coordinator() as coordinator:
        client, (first, second) = Client(coordinator), coordinator.engines
        client.submit(PROMPTS[0])
        request = first.request()
        first.leave()
        first.register()
        coordinator.has(2)
        first.reply(request)
        assert client.answer() == (0, str(request))
        client.submit(PROMPTS[1])
        client.submit(PROMPTS[2])
        assert {first.request(), second.request()} == {1, 2}


def test_one_that_never_was_an_engine_ends_it_as_before():
    with Coordinator() as coordinator:
        client, (engine, _) = Client(coordinator), coordinator.engines
        client.submit(PROMPTS[0])
        Engine.reply(client, engine.request())  # type: ignore[arg-type]
        with pytest.raises(AssertionError, match="the coordinator has ended") as caught:
            coordinator.has_ended()
        assert type(caught.value.__cause__) is AssertionError
