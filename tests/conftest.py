"""Fixtures of the tests that run Megatron."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import megatron_patch
from megatron_patch import testing


@pytest.fixture(scope="session")
def device() -> Iterator[Any]:
    """The device that Megatron runs on: CUDA where there is one, else the CPU with stand-ins."""
    yield testing.start()
    testing.stop()


@pytest.fixture
def unpatched(device: Any) -> Iterator[None]:
    """Megatron as it was released, for the length of one test."""
    megatron_patch.uninstall()
    yield
    megatron_patch.install()


@pytest.fixture
def cuda_device(device: Any) -> Any:
    """The CUDA device; skips the test where there is none."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    return device
