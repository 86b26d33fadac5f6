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


def trouble(message: str, *, is_raised: bool) -> None:
    """Tell of something that an operator must know, once on stderr.

    A record goes to the handlers of ``logging``, where somebody has set up any. If none of them
    writes to stderr, there is a ``MegatronPatchWarning``, too, or a line on stderr where warnings
    are ignored and nobody has set up ``logging``. A message that ``is_raised`` as an error needs
    neither.
    """
    has_handlers = logger().hasHandlers()
    if has_handlers:
        log("warning", message)
    if is_raised or (has_handlers and _logs_to_stderr()):
        return
    if has_handlers or not _ignores_warnings():
        warn(message)
    else:
        line(message)


def _logs_to_stderr() -> bool:
    """Whether a handler writes our warnings where Python writes its own."""
    from logging import WARNING

    source: logging.Logger | None = logger()
    if source is None or not source.isEnabledFor(WARNING):
        return False
    while source is not None:
        for handler in source.handlers:
            stream = vars(handler).get("stream")
            if stream in (sys.stderr, sys.__stderr__) and stream and handler.level <= WARNING:
                return True
        source = source.parent if source.propagate else None
    return False


def _ignores_warnings() -> bool:
    """Whether the first filter for our warnings, of whatever text and module, drops them."""
    for action, text, category, module, _ in warnings.filters:
        if text is None and module is None and issubclass(MegatronPatchWarning, category):
            return action == "ignore"
    return False


def warn(message: str) -> None:
    """Warn with ``MegatronPatchWarning``.

    The warning comes up during an import in somebody else's code. Where the filters of a process
    make an error of each warning, or its hook for warnings raises, the message is a line on stderr
    all the same.
    """
    try:
        warnings.warn(message, MegatronPatchWarning, stacklevel=4)
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
