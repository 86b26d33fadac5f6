"""A lock that a forked child can take, whoever held it at the fork."""

from __future__ import annotations

import os
import threading

#: How long a fork waits for another thread: settling all patches takes a second or two.
PATIENCE_SECONDS = 2.0


class ForkSafeLock:
    """A re-entrant lock.

    A fork copies the locks of all threads and no thread but its own. So a fork waits until this
    lock is free, so that the child does not get half of somebody's work; and where that takes too
    long, such as when this thread holds what the other one waits for, the child has a new lock.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._forking = threading.local()  # two threads may fork at once
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before_fork,
                after_in_parent=self._after_fork,
                after_in_child=self._after_fork_in_child,
            )

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _before_fork(self) -> None:
        self._forking.holds = self._lock.acquire(timeout=PATIENCE_SECONDS)

    def _after_fork(self) -> None:
        if self._forking.holds:
            self._lock.release()

    def _after_fork_in_child(self) -> None:
        if not self._forking.holds:
            self._lock = threading.RLock()
        self._after_fork()
