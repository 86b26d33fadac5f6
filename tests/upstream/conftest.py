"""Every mirrored test runs Megatron."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _megatron_runs(device: Any) -> None:
    """The fixture `device` of `tests/conftest.py`, for each test here."""
