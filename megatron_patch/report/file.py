"""Put a page on disk, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from ..errors import TreeError
from .collecting import Report
from .page import BEGINNING, page


def write(report: Report, file: Path, *, force: bool = False) -> None:
    """Write the page of ``report`` to ``file``, in one step.

    Raises ``TreeError``, with nothing written, when something is there that is no report (unless it
    is a file, and with ``force``), and ``OSError`` when the file cannot be written.
    """
    content = page(report).encode()
    there = file.resolve()
    if there.exists() and not (there.is_file() and (force or _is_ours(there))):
        hint = "; add --force to replace it" if there.is_file() else ""
        raise TreeError(f"{file} is there, and is no report of megatron_patch{hint}")
    new = there.with_name(f".{there.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(new, there)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _is_ours(file: Path) -> bool:
    with open(file, "rb") as opened:
        return opened.read(len(BEGINNING)) == BEGINNING.encode()
