"""Requests that come while ``run_engine()`` is idle, on whichever release is installed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from packaging.version import Version

from megatron_patch import testing
from megatron_patch.backports.ours.idle_engine_wake import IDLE_ENGINE_WAKE
from megatron_patch.testing.decoding import _sampling_params
from megatron_patch.testing.releases import engine_class, parameters_of

from ..conftest import RELEASE
from .checks import assert_state_of_record, proof
from .serving import of_future

pytestmark = pytest.mark.usefixtures("device")

REQUESTS = (testing.Request((1, 2, 3), 4), testing.Request((5, 6), 3), testing.Request((7, 8), 5))
#: Seconds in which an engine surely has become idle.
IDLE = 0.05


def run(use: Callable[[Any, Callable[[testing.Request], Any]], Any]) -> Any:
    """Await ``use(engine, add)`` while ``run_engine()`` runs, which is idle at first."""
    engine = testing.build_engine(testing.EngineSpec())
    of_all = "sampling_params" in parameters_of(engine_class().run_engine)

    def add(request: testing.Request) -> Any:
        request_id, prompt = int(next(engine.request_counter)), list(request.prompt)
        if of_all:
            return engine.add_request(request_id, prompt, request.num_tokens)
        return engine.add_request(request_id, prompt, _sampling_params(request, {}))

    async def main() -> Any:
        sampling = (_sampling_params(REQUESTS[0], {}),) if of_all else ()
        task = asyncio.get_running_loop().create_task(engine.run_engine(*sampling))
        await asyncio.sleep(IDLE)
        try:
            return await use(engine, add)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return engine._loop.run_until_complete(main())


async def answered(futures: list[Any]) -> list[Any]:
    """What became of requests, after more turns of the event loop than they need steps."""
    for _ in range(100):
        if all(future.done() for future in futures):
            break
        await asyncio.sleep(0.01)
    return [of_future(future) for future in futures]


def reference():  # type: ignore[no-untyped-def]
    return testing.reference_decode(testing.build_model(testing.EngineSpec()), REQUESTS)


def test_state():
    engine_class()
    assert_state_of_record(IDLE_ENGINE_WAKE)


@proof
def test_an_idle_engine_wakes_for_each_request():
    async def use(engine: Any, add: Any) -> list[Any]:
        found = []
        for request in REQUESTS:
            found += await answered([add(request)])
            await asyncio.sleep(IDLE)
        return found

    assert run(use) == [("COMPLETED", tokens, ()) for tokens in reference()]


def test_several_at_once_and_one_more_while_it_is_busy():
    async def use(engine: Any, add: Any) -> list[Any]:
        futures = [add(request) for request in REQUESTS[:2]]
        await asyncio.sleep(0)
        futures.append(add(REQUESTS[2]))
        return await answered(futures)

    assert run(use) == [("COMPLETED", tokens, ()) for tokens in reference()]


@pytest.mark.skipif(RELEASE < Version("0.16"), reason=f"{RELEASE} makes futures in the loop only")
def test_a_request_of_another_thread():
    async def use(engine: Any, add: Any) -> Any:
        futures: list[Any] = []
        other = threading.Thread(target=lambda: futures.append(add(REQUESTS[0])))
        other.start()
        while other.is_alive():  # not joined: that would stop the loop
            await asyncio.sleep(0.01)
        return await answered(futures)

    assert run(use) == [("COMPLETED", reference()[0], ())]


@pytest.mark.skipif(RELEASE < Version("0.16"), reason=f"{RELEASE} has no suspend()")
def test_a_request_for_a_suspended_engine_waits_for_its_resumption():
    async def use(engine: Any, add: Any) -> Any:
        testing.suspend(engine)
        await asyncio.sleep(IDLE)
        future = add(REQUESTS[0])
        await asyncio.sleep(IDLE)
        assert not future.done()
        # What came meanwhile is still in the queue, to which those of before are added.
        testing.resume(engine)
        return await answered([future])

    assert run(use) == [("COMPLETED", reference()[0], ())]


@pytest.mark.skipif(RELEASE < Version("0.15"), reason=f"{RELEASE} wakes")
def test_unpatched_it_does_not_wake(unpatched):
    async def use(engine: Any, add: Any) -> Any:
        return await answered([add(REQUESTS[0])])

    assert run(use) == [None]
