"""Tell the operator of a process something, and never end the process by that."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING

from .errors import MegatronPatchWarning

if TYPE_CHECKING:
    import logging


def logger() -> logging.Logger:
    """That of this package. ``logging`` is imported by the first call that needs it."""
    import logging

    return logging.getLogger("megatron_patch")


def warn(message: str) -> None:
    """Warn with ``MegatronPatchWarning``.

    Warnings come out of the imports of others. Where the filters of a process make an error of each
    warning, or its hook for warnings raises, the message is a line on stderr all the same.
    """
    try:
        warnings.warn(message, MegatronPatchWarning, stacklevel=3)
    except Exception:
        line(message)


def log(level: str, message: str) -> None:
    """A log record; a line on stderr where a handler or a filter of somebody else's raises."""
    try:
        getattr(logger(), level)("%s", message)
    except Exception as error:
        line(f"{message} (and logging it raised {type(error).__name__}: {error})")


def line(message: str) -> None:
    """One line on stderr, if there is one: a process need not have it, or may have closed it."""
    try:
        if sys.stderr is sys.__stderr__ and sys.stderr is not None:
            # What is written to a closed file is kept, and fails again at the end of the process.
            os.fstat(sys.stderr.fileno())
        sys.stderr.write(" ".join(f"megatron_patch: {message}".split()) + "\n")
    except Exception:
        return


def described(error: Exception) -> str:
    """Type and message of an error; the type alone where the message is chance.

    All ranks have to say the same, and where a stack or memory was used up differs.
    """
    name = type(error).__name__
    return name if isinstance(error, (RecursionError, MemoryError)) else f"{name}: {error}"
