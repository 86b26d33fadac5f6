"""The event loop that engines run on, and what they leave on it between their steps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop of its own, closed at the end with nothing left on it."""
    loop = asyncio.new_event_loop()
    # Engines of old releases make futures of the current loop.
    asyncio.set_event_loop(loop)
    try:
        yield loop
    finally:
        settle(loop)
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        asyncio.set_event_loop(None)
        loop.close()


def settle(loop: asyncio.AbstractEventLoop) -> None:
    """Run what an engine has scheduled between its steps, such as notices of new requests.

    Otherwise Python warns of coroutines that were never awaited when the loop is closed.
    """
    for _ in range(3):  # one turn makes the task, the next runs it
        loop.run_until_complete(asyncio.sleep(0))
