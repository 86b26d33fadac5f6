"""The CUDA device of this process, which some errors leave of no further use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron_patch.testing.runtime import running

from .configuration import Configuration
from .draws import default_generator


class DeviceLostError(RuntimeError):
    """After this run, nothing that this process does on its device can be trusted any more.

    An index out of range is an exception on a CPU. On a GPU it is an assertion of a kernel, or a
    read of somebody else's memory, and the first that the host sees of it is that a later call
    fails, as all calls then do. A capture that an exception has ended leaves PyTorch's generator
    of random numbers waiting for its end: no number can be drawn then.
    """

    def __init__(self, configuration: Configuration, selection: str, text: str) -> None:
        super().__init__(f"with the patches {selection!r} the device was lost: {text}")
        self.configuration = configuration


@contextmanager
def told_of_lost_device(configuration: Configuration, selection: str) -> Iterator[None]:
    """Raise DeviceLostError if the device is of no use when the ``with`` block ends."""
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    lost = _failure()
    if lost is not None:
        raise DeviceLostError(configuration, selection, lost) from error
    if error is not None:
        raise error


def _failure() -> str | None:
    """What waiting for the device, or drawing a number there, raises; None if neither does.

    The number is not missed: its generator goes back to where it was.
    """
    import torch

    if running().on_cpu:
        return None
    try:
        torch.cuda.synchronize()
        generator = default_generator(running().device)
        state = generator.get_state()
        torch.rand(1, device=running().device)
        generator.set_state(state)
    except RuntimeError as error:
        return _first_line(error)
    return None


def _first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]
