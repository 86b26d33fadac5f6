"""Start a command with the patches active in it and in every Python process that it starts."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import supervising, watching
from .settings import RECORDS, SELECTION, STRICT

SITE = Path(__file__).parent / "_site"


def environment_for(
    base: Mapping[str, str], *, only: Sequence[str] = (), strict: bool = False
) -> dict[str, str]:
    """``base`` with ``PYTHONPATH`` and the settings of this package as the options say.

    ``only`` are names as ``MEGATRON_PATCH`` takes them; none leaves the variable as it is.
    """
    result = dict(base)
    inherited = base.get("PYTHONPATH")
    result["PYTHONPATH"] = os.pathsep.join([str(SITE), *([inherited] if inherited else [])])
    if base.get(RECORDS):  # absolute, since processes of the command may run in other directories
        files = base[RECORDS].split(os.pathsep)
        result[RECORDS] = os.pathsep.join(os.path.abspath(f.strip()) for f in files if f.strip())
    if only:
        result[SELECTION] = ",".join(only)
    if strict:
        result[STRICT] = "1"
    return result


def run(command: Sequence[str], environment: Mapping[str, str], *, strict: bool = False) -> int:
    """Become ``command``: exit status and signals are its own. Returns only if it cannot start.

    The status is then the shell's: 127 for a command that is not found, 126 for one that cannot
    be executed. Processes that the patches do not reach are told of on stderr (`watching`). With
    ``strict`` the command is a child, and the status that is returned is 1 if it ends with 0 and
    there was such a process (`supervising`).
    """
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        found = _not_executable(command[0], environment.get("PATH", os.defpath))
        print(f"megatron-patch run: {command[0]}: {found or 'command not found'}", file=sys.stderr)
        return 126 if found else 127
    sys.stdout.flush()
    if environment.get(SELECTION) == "none":
        return supervising.become(program, command, environment)
    if not watching.can_watch():
        supervising.say("there is no /proc: what the patches do not reach is not noticed")
        return supervising.become(program, command, environment)
    mark = f"{os.getpid()}-{time.time_ns()}"
    marked = {**environment, watching.MARK: mark}
    if strict:
        return supervising.supervise(program, command, marked, mark)
    supervising.watch_from_aside(mark)
    return supervising.become(program, command, marked)


def _not_executable(name: str, path: str) -> str | None:
    """Why a command that is there cannot be executed; ``None`` if it is not there."""
    if not os.path.dirname(name):
        is_there = any(os.path.isfile(os.path.join(one, name)) for one in path.split(os.pathsep))
    elif os.path.isdir(name):
        return os.strerror(errno.EISDIR)
    else:
        is_there = os.path.exists(name)
    return os.strerror(errno.EACCES) if is_there else None
