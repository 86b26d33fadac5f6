"""Run a program on two ranks of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import megatron_patch
from megatron_patch import testing


def run(folder: Path, program: str, arguments: Sequence[Any], *, cpu: bool = True) -> None:
    """Run ``program`` with torchrun; ``json.loads(sys.argv[1])`` are its arguments there.

    The file of the program is put into ``folder``. With ``cpu`` the ranks see no CUDA device.
    """
    script = folder / "rank.py"
    script.write_text(program)
    package = Path(megatron_patch.__file__).parents[1]
    variables = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    variables["PYTHONPATH"] = os.pathsep.join([variables.get("PYTHONPATH", ""), str(package)])
    if cpu:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(script), json.dumps(arguments)),
        ],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def as_arguments(requests: Sequence[testing.Request]) -> list[tuple[Any, ...]]:
    """``requests`` as JSON arguments of ``Request``; none may have sampling parameters."""
    return [(r.prompt, r.num_tokens, r.arrival_step) for r in requests]
