"""A note that this process is patched, for whoever looks at it from outside: an open directory.

Linux shows the open files of a process in ``/proc``. So the note needs no message and no file of
its own. A forked child has it, as it has the patches; a program that the process executes has
neither.
"""

from __future__ import annotations

import os
import sys

#: What is kept open, by each copy of this package: also by `_site/sitecustomize.py`.
DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_site")
_ENDS = "/megatron_patch/_site"


def leave() -> None:
    """Keep the directory open as long as this process runs. Idempotent."""
    if sys.platform != "linux":
        return
    try:
        if has_left(os.getpid()):
            return
        number = os.open(DIRECTORY, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # there is no /proc, no directory but an archive, or no room for an open file
    if number <= 2:
        os.close(number)  # to be used as stdin, stdout or stderr, which are closed here


def has_left(process: int) -> bool:
    """Whether a process has the note. Raises ``OSError`` when it is gone, or somebody else's."""
    folder = f"/proc/{process}/fd"
    for name in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{name}")
        except FileNotFoundError:  # it has just been closed
            continue
        if target.removesuffix(" (deleted)").endswith(_ENDS):
            return True
    return False
