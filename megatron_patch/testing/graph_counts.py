"""Count how often CUDA graphs are captured and replayed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch


@dataclass
class Counted:
    """How often CUDA graphs were captured and replayed."""

    captures: int = 0
    replays: int = 0


@contextmanager
def counted() -> Iterator[Counted]:
    """Count the captures and replays in the ``with`` block, on a GPU too."""
    count, real = Counted(), torch.cuda.CUDAGraph
    capture_end, replay = real.capture_end, real.replay

    def counting_capture_end(self: Any) -> None:
        capture_end(self)
        count.captures += 1

    def counting_replay(self: Any) -> None:
        replay(self)
        count.replays += 1

    with (
        mock.patch.object(real, "capture_end", counting_capture_end),
        mock.patch.object(real, "replay", counting_replay),
    ):
        yield count
