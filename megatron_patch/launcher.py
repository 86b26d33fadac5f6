"""Start a command with the patches active in it and in every Python process that it starts."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    if base.get(RECORDS):  # which processes of the command may read in other directories
        files = base[RECORDS].split(os.pathsep)
        result[RECORDS] = os.pathsep.join(os.path.abspath(f.strip()) for f in files if f.strip())
    if only:
        result[SELECTION] = ",".join(only)
    if strict:
        result[STRICT] = "1"
    return result


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Become ``command``: exit status and signals are its own. Returns only if it cannot start.

    The status is then the shell's: 127 for a command that is not found, 126 for one that cannot
    be executed.
    """
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        print(f"megatron-patch run: {command[0]}: command not found", file=sys.stderr)
        return 127
    sys.stdout.flush()
    try:
        os.execve(program, list(command), dict(environment))
    except OSError as error:
        print(f"megatron-patch run: {command[0]}: {error.strerror}", file=sys.stderr)
        return 126
