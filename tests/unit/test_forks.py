"""A forked child can take our lock, and finds no patch half applied."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from megatron_patch import forks
from megatron_patch.engine import Engine
from megatron_patch.settings import Settings
from megatron_patch.states import State

from .sample import only
from .test_engine import both, thing

__all__ = ["both"]

# Python 3.12 warns of forks in a process with threads, which is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def in_forked_child(function: Callable[[], bool]) -> str:
    """What became of a child that calls ``function``, ended when it takes too long."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(20)
            os._exit(0 if function() else 1)
        finally:
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {0: "right", 1: "wrong", 2: "raised", -signal.SIGALRM: "hangs"}[status]


@contextmanager
def held_by_another_thread(engine: Engine) -> Iterator[None]:
    taken, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with engine._lock:
            taken.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    yield
    leave.set()
    thread.join()


def test_a_child_forked_while_a_thread_holds_the_lock(workshop, both, monkeypatch):
    monkeypatch.setattr(forks, "PATIENCE_SECONDS", 0.1, raising=False)
    engine = workshop.engine(both)
    with held_by_another_thread(engine):
        assert in_forked_child(lambda: only(engine).state is State.PENDING) == "right"

        def import_it() -> bool:
            importlib.import_module("target_module")
            return only(engine).state is State.APPLIED and thing().one() == 10

        assert in_forked_child(import_it) == "right"
    importlib.import_module("target_module")
    assert only(engine).state is State.APPLIED  # and this process's lock is as it was
    assert in_forked_child(lambda: only(engine).state is State.APPLIED) == "right"


def test_a_fork_waits_for_patches_that_are_just_being_applied(workshop, both, mocker):
    importlib.import_module("target_module")
    engine = Engine([both])
    workshop.engines.append(engine)
    half_way = threading.Event()
    apply = Engine._apply

    def slowly(*args: object) -> None:
        half_way.set()
        time.sleep(0.3)
        apply(*args)

    mocker.patch.object(Engine, "_apply", slowly)
    thread = threading.Thread(target=engine.install, args=[Settings(frozenset({"sample"}))])
    thread.start()
    half_way.wait()
    assert in_forked_child(lambda: only(engine).state is State.APPLIED) == "right"
    thread.join()


def test_a_fork_in_the_midst_of_our_own_work(workshop, both):
    engine = workshop.engine(both)

    def use_it() -> bool:
        with engine._lock:
            pass
        return True

    with engine._lock:
        assert in_forked_child(use_it) == "right"
    assert only(engine).state is State.PENDING
