"""How a refused request is answered, on whichever release is installed.

From 0.17 on these tests run upstream's own code.
"""

from __future__ import annotations

import gc
import inspect
from typing import Any

import pytest

from megatron_patch import testing
from megatron_patch.backports.upstream.refused_request_reply import REFUSED_REQUEST_REPLY
from megatron_patch.testing.decoding import add_request, stepper
from megatron_patch.testing.releases import engine_class, parameters_of

from ..conftest import RELEASE
from .checks import assert_state_of_record, needs, proof
from .serving import of_future

pytestmark = pytest.mark.usefixtures("device")

#: Prompts longer than a sequence may be, and longer than a step that does not split them.
TOO_LONG = testing.Request(tuple(range(120)), 20)
SHORT = testing.Request((1, 2, 3), 4)
ERROR = "MaxSequenceLengthOverflowError"


def build() -> Any:
    needs(hasattr(engine_class(), "_add_request"), "requests that fail without an exception")
    return testing.build_engine(testing.EngineSpec(max_tokens=256, max_sequence_length=128))


def finished(engine: Any) -> list[Any]:
    """The requests that the next step returns as finished: the last part of each record."""
    result = stepper(engine, {})()
    records = result.get("finished_requests", result.get("finished_request_records"))
    return [getattr(record, "requests", [record])[-1] for record in records]


def is_refused_for_its_length() -> bool:
    """Whether a request for too many tokens is refused. Since 0.19 it gets as many as fit."""
    return "remaining_tokens" not in inspect.getsource(engine_class()._add_request)


def test_state():
    engine_class()
    assert_state_of_record(REFUSED_REQUEST_REPLY)


@proof
def test_an_idle_engine_answers_at_once():
    engine = build()
    request = testing.Request((*TOO_LONG.prompt, *range(20)), 1)
    future = add_request(engine, request, {})
    found = of_future(future)
    assert found is not None
    assert (found.status, found.tokens) == ("FAILED", ())
    assert ERROR in found.errors
    (part,) = finished(engine)
    assert part.generated_text == ""
    assert [event.type.name for event in part.events].count("FAIL") == 1
    assert engine.requests == {}
    assert finished(engine) == []


@proof
def test_a_busy_engine_answers_at_once_and_goes_on():
    engine = build()
    needs(is_refused_for_its_length(), "requests that fail for what they would generate")
    served = add_request(engine, SHORT, {})
    assert finished(engine) == []
    refused = [add_request(engine, TOO_LONG, {}) for _ in range(2)]
    assert [of_future(future) for future in refused] == [("FAILED", (), (ERROR,))] * 2
    assert [part.status.name for part in finished(engine)] == ["FAILED"] * 2
    while not served.done():
        finished(engine)
    (tokens,) = testing.reference_decode(testing.build_model(testing.EngineSpec()), [SHORT])
    assert of_future(served) == ("COMPLETED", tokens, ())


@proof
def test_generate_goes_on_until_it_has_those_that_are_refused():
    """In releases with records this is the concern of ``generate-refused-requests``."""
    from megatron.core.inference import inference_request
    from megatron.core.inference.sampling_params import SamplingParams

    records = hasattr(inference_request, "DynamicInferenceRequestRecord")
    needs(not records, "a generate() that gets the requests themselves")

    engine = build()
    long, short = " ".join(["1"] * 200), "1 2 3"
    sampling = SamplingParams(num_tokens_to_generate=3, top_k=1)
    if hasattr(sampling, "termination_id"):
        # Where a request has one, it has to be a number.
        sampling.termination_id = -1
    assert [part.status.name for part in engine.generate([long], sampling)] == ["FAILED"]
    found = engine.generate([short, long, short], sampling)
    assert [part.status.name for part in found] == ["COMPLETED", "FAILED", "COMPLETED"]


def test_the_coordinator_gets_the_reply_at_once_and_once():
    """Over sockets of the kind that lead to the coordinator, which is another process."""
    zmq, msgpack = pytest.importorskip("zmq"), pytest.importorskip("msgpack")
    engine = build()
    needs(hasattr(engine, "use_coordinator"), "an engine that knows of its coordinator")
    context = zmq.Context()
    try:
        own, other = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        own.bind("inproc://reply")
        other.connect("inproc://reply")
        engine.use_coordinator = engine.is_mp_coordinator = True
        engine.socket_for_receiving_requests = own
        request = testing.Request((*TOO_LONG.prompt, *range(20)), 1)
        future = add_request(engine, request, {})
        assert future.done()
        header, (record,) = msgpack.unpackb(other.recv(zmq.NOBLOCK), raw=False)
        from megatron.core.inference.headers import Headers

        assert Headers(header) is Headers.ENGINE_REPLY
        part = record["requests"][-1] if "requests" in record else record
        assert part["status"] == "FAILED"
        stepper(engine, {})()
        with pytest.raises(zmq.Again):
            other.recv(zmq.NOBLOCK)
        assert engine.requests == {}
    finally:
        context.destroy(linger=0)


@proof
def test_a_coordinator_that_the_engine_does_not_know_of_gets_the_reply_at_once():
    zmq, msgpack = pytest.importorskip("zmq"), pytest.importorskip("msgpack")
    Headers = pytest.importorskip("megatron.core.inference.headers").Headers

    engine = build()
    needs(not hasattr(engine, "use_coordinator"), "an engine that does not know of its coordinator")
    context = zmq.Context()
    try:
        for name in ("socket_for_receiving_requests", "num_msgs"):
            own, other = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
            own.bind(f"inproc://{name}")
            other.connect(f"inproc://{name}")
            if name == "num_msgs":
                engine.tensor_parallel_num_msgs_publisher_socket = own
                engine.tensor_parallel_publisher_socket = own
            else:
                engine.socket_for_receiving_requests, coordinator = own, other
        sampling = {"num_tokens_to_generate": 2, "num_tokens_total": None}
        for request_id, length in ((0, 200), (1, 3)):
            message = [Headers.SUBMIT_REQUEST.value, request_id, [1] * length, sampling]
            coordinator.send(msgpack.packb(message))

        async def schedule() -> None:
            engine.schedule_requests()

        engine._loop.run_until_complete(schedule())
        header, *reply = msgpack.unpackb(coordinator.recv(zmq.NOBLOCK), raw=False)
        assert Headers(header) is Headers.ENGINE_REPLY
        if "post_process_requests_locally" in parameters_of(engine.async_step):
            # This engine keeps the requests, and this request ends without tokens.
            assert reply == [[], [0], [], None, -1, True]
        else:
            ((found,),) = reply
            assert (found["request_id"], found["status"]) == (0, "FAILED")
            assert (found["generated_text"], found["generated_tokens"]) == ("", [])
        assert {*engine.requests} == {1}
        assert engine.failed_request_ids == []
    finally:
        context.destroy(linger=0)
        gc.collect()


@pytest.mark.skipif(
    RELEASE.release[:2] not in ((0, 15), (0, 16)), reason=f"{RELEASE} answers at once, or raises"
)
def test_unpatched_an_idle_engine_does_not_answer(unpatched):
    engine = build()
    future = add_request(engine, TOO_LONG, {})
    assert not engine.has_unfinished_requests()
    assert not future.done()
