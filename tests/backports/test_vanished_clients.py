"""Clients that are gone when the coordinator has something for them."""

from __future__ import annotations

import pytest
import zmq

from megatron_patch.backports.ours.vanished_clients import VANISHED_CLIENTS

from .checks import assert_state_of_record, needs, proof
from .coordinators import SHORT, Client, Coordinator, Peer, coordinator_class, headers

pytestmark = pytest.mark.usefixtures("device")


def test_state():
    coordinator_class()
    assert_state_of_record(VANISHED_CLIENTS)


@proof
def test_its_reply_is_dropped_and_others_are_answered():
    with Coordinator(1) as coordinator:
        client, other = Client(coordinator), Client(coordinator)
        engine = coordinator.engines[0]
        client.submit(SHORT)
        request = engine.request()
        client.vanish()
        engine.reply(request)
        assert [other.is_served_by(SHORT) for _ in range(2)] == [0, 0]


@proof
def test_the_replies_after_it_in_one_message_are_passed_on():
    with Coordinator(1) as coordinator:
        client, other = Client(coordinator), Client(coordinator)
        engine = coordinator.engines[0]
        requests = []
        for submitting in (client, other, client, other):
            submitting.submit(SHORT)
            requests.append(engine.request())
        client.vanish()
        engine.reply(*requests)
        assert [other.answer() for _ in range(2)] == [(n, str(requests[1 + 2 * n])) for n in (0, 1)]


@proof
def test_its_tokens_so_far_are_dropped_and_others_are_answered():
    coordinator_class()
    needs(hasattr(headers(), "ENGINE_REPLY_PARTIAL"), "tokens of a request that goes on")
    with Coordinator(1) as coordinator:
        client, other = Client(coordinator), Client(coordinator)
        engine = coordinator.engines[0]
        client.submit(SHORT)
        request = engine.request()
        client.vanish()
        engine.send(headers().ENGINE_REPLY_PARTIAL, [{"request_id": request}])
        assert other.is_served_by(SHORT) == 0


@proof
def test_a_client_that_is_gone_before_it_is_known():
    with Coordinator(1) as coordinator:
        other, engine = Client(coordinator), coordinator.engines[0]
        other.submit("1 2 3")
        assert coordinator.tokenizer.asked.wait(20)
        # The coordinator is busy, and acknowledges the client only when that is gone.
        client = Peer(coordinator)
        client.socket.connect(coordinator.address)
        client.send(headers().CONNECT)
        client.vanish()
        coordinator.tokenizer.may_go_on.set()
        request = engine.request()
        engine.reply(request)
        assert other.answer() == (0, str(request))
        assert other.is_served_by(SHORT) == 0


def test_other_errors_of_the_socket_are_raised(monkeypatch):
    with Coordinator(1) as coordinator:
        client, engine = Client(coordinator), coordinator.engines[0]
        client.submit(SHORT)
        request = engine.request()

        def refuse(socket: zmq.Socket[bytes], parts: object) -> None:
            raise zmq.error.ZMQError(zmq.ENOTSOCK)

        # Only the coordinator uses this method here.
        monkeypatch.setattr(zmq.Socket, "send_multipart", refuse)
        engine.reply(request)
        with pytest.raises(AssertionError, match="the coordinator has ended") as caught:
            coordinator.has_ended()
        assert type(caught.value.__cause__) is zmq.error.ZMQError
