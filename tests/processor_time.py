"""Processor time, which hardly depends on what else the machine does."""

from __future__ import annotations

import resource


def of_children() -> float:
    """Seconds of processor time of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
