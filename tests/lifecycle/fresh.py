"""Test classes whose every test runs in a process of its own."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

ROOT = Path(__file__).parents[2]
SKIPPED = 77  # exit status of a child whose test called pytest.skip


class InFreshProcess:
    """Each ``test*`` method of a subclass runs in a child of the zygote; see :mod:`.zygote`.

    Tests are written as usual, and may take parameters and fixtures that can be pickled. Modules
    of test classes must not import Megatron or ``megatron_patch``: the methods do.
    """

    timeout: ClassVar[float] = 60

    @classmethod
    def modules(cls) -> tuple[str, ...]:
        """Modules that the tests will import: not they, but what they import is imported before."""
        return ()

    def begin(self) -> None:
        """Called in the child, before the test."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, test in list(vars(cls).items()):
            if name.startswith("test"):
                setattr(cls, name, _in_fresh_process(test))


def _in_fresh_process(test: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(test)
    def in_child(self: InFreshProcess, **arguments: Any) -> None:
        problem, output = run_in_child(type(self), test.__name__, **arguments)
        if problem == f"exit status {SKIPPED}":
            pytest.skip(output.splitlines()[-1])
        if problem:
            pytest.fail(f"{problem}\n{output}", pytrace=False)

    return in_child


def run_in_child(cls: type[InFreshProcess], method: str, **arguments: Any) -> tuple[str, str]:
    """What went wrong in the child, if anything, and what it printed."""
    request = {
        "module": cls.__module__,
        "cls": cls.__qualname__,
        "method": method,
        "arguments": arguments,
        "modules": cls.modules(),
        "timeout": cls.timeout,
    }
    zygote = _zygote()
    assert zygote.stdin is not None
    assert zygote.stdout is not None
    pickle.dump(request, zygote.stdin)
    zygote.stdin.flush()
    reply: tuple[str, str] = pickle.load(zygote.stdout)
    return reply


@functools.cache
def _zygote() -> subprocess.Popen[bytes]:
    zygote = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.lifecycle.zygote"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(zygote.wait)
    assert zygote.stdin is not None
    atexit.register(zygote.stdin.close)  # called first
    return zygote


def environment() -> dict[str, str]:
    """That of this process, with the package under test and these tests importable anywhere."""
    spec = importlib.util.find_spec("megatron_patch")
    assert spec is not None
    assert spec.origin is not None
    places = [str(Path(spec.origin).parents[1]), str(ROOT), os.environ.get("PYTHONPATH", "")]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MEGATRON_PATCH")}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, dict.fromkeys(places))),
        "OMP_NUM_THREADS": "1",  # a process with threads should not fork
    }
