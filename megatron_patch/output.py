"""What a command prints gets out: whatever stdout can show, and whoever stops reading it."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable
from typing import Union

#: The exit status where nobody reads any more: that of a program which SIGPIPE has ended.
NOBODY_READS = 141
HANDLER = "megatron_patch.as_it_can"


def _as_it_can(error: UnicodeError) -> tuple[Union[str, bytes], int]:
    """What stdout cannot encode: the very bytes of a path; an escape for any other character."""
    for name in ("surrogateescape", "backslashreplace"):
        try:
            return codecs.lookup_error(name)(error)
        except UnicodeError:
            continue
    raise error


def printing(command: Callable[[], int], name: str) -> int:
    """The exit status of ``command``, which prints; what it has printed is written by then.

    ``OSError`` is a line on stderr and the status 1. Where the reader of stdout or stderr has gone
    away, nothing is told, and the status is :data:`NOBODY_READS`.
    """
    codecs.register_error(HANDLER, _as_it_can)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors=HANDLER)
    try:
        try:
            return command()
        finally:  # also where help was asked for, which ends with SystemExit
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _discard()
        return NOBODY_READS
    except OSError as error:
        _discard()
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        print(f"{name}: {where}{error.strerror or error}", file=sys.stderr)
        return 1


def _discard() -> None:
    """Have what is still to be written go nowhere: it would fail at the end of the process."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        except AttributeError:  # the process has no such stream
            continue
