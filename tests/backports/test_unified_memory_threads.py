"""Where the allocator of unified memory can be compiled, on whichever release is installed."""

from __future__ import annotations

import importlib.util
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from megatron_patch.backports.upstream.unified_memory_threads import UNIFIED_MEMORY_THREADS

from .checks import assert_state_of_record, needs, proof


@pytest.fixture
def module(device) -> Any:
    """The module of the target."""
    name = "megatron.core.inference.unified_memory"
    needs(importlib.util.find_spec(name) is not None, "unified memory")
    return importlib.import_module(name)


def test_state(module):
    assert_state_of_record(UNIFIED_MEMORY_THREADS)


@proof
def test_it_can_be_compiled_in_another_thread(module):
    needs(hasattr(module, "_compile_timeout"), "a limit of time for compiling")

    def compile_nothing() -> str:
        with module._compile_timeout(60):
            return "compiled"

    with ThreadPoolExecutor(1) as other:
        assert other.submit(compile_nothing).result() == "compiled"


def test_the_main_thread_is_not_disturbed_by_another(module):
    needs(hasattr(module, "_compile_timeout"), "a limit of time for compiling")
    before = signal.getsignal(signal.SIGALRM)

    def compile_slowly() -> str:
        with module._compile_timeout(1):
            time.sleep(1.2)
            return "compiled"

    with ThreadPoolExecutor(1) as other:
        assert other.submit(compile_slowly).result() == "compiled"
    assert signal.getsignal(signal.SIGALRM) is before


def test_what_fails_in_another_thread_is_raised(module):
    needs(hasattr(module, "_compile_timeout"), "a limit of time for compiling")

    def fail() -> None:
        with module._compile_timeout(60):
            raise OSError("no compiler")

    with ThreadPoolExecutor(1) as other, pytest.raises(OSError, match="no compiler"):
        other.submit(fail).result()


def test_the_main_thread_has_a_limit_as_before(module):
    needs(hasattr(module, "_compile_timeout"), "a limit of time for compiling")
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(module.UnifiedMemoryCompileTimeoutError), module._compile_timeout(1):
        time.sleep(5)
    assert signal.getsignal(signal.SIGALRM) is before
