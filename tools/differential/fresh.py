"""Configurations in processes that import the patches before Megatron.

Elsewhere Megatron is imported as it was released, and patched afterwards. Here each selection has
a process of its own, which imports `megatron_patch` first. The records of the processes are
compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import comparing
from .comparing import Difference
from .configuration import Configuration, decode, encode
from .selections import ALL, CORRECTNESS, NONE, PERFORMANCE

ROOT = Path(__file__).parents[2]
PAIRS = ((NONE, PERFORMANCE), (CORRECTNESS, ALL))
"""Selections between which there is no difference."""


@dataclass(frozen=True)
class Result:
    """What a performance patch changes of one configuration."""

    configuration: Configuration
    between: tuple[str, str]
    differences: list[Difference]

    def __str__(self) -> str:
        lines = [f"{' -> '.join(self.between)}: {encode(self.configuration)}"]
        return "\n  ".join([*lines, *map(str, self.differences[:6])])


def compare(configurations: Sequence[Configuration], seconds: float) -> list[Result]:
    """Run configurations with each selection, and compare; only what differs is returned.

    Raises:
        RuntimeError: a process failed; the message has what it printed.
        subprocess.TimeoutExpired: one took longer than ``seconds``.
    """
    records = {name: _run(configurations, name, seconds) for pair in PAIRS for name in pair}
    results = []
    for index, configuration in enumerate(configurations):
        for left, right in PAIRS:
            found = comparing.differences(records[left][index], records[right][index])
            if found:
                results.append(Result(configuration, (left, right), found))
    return results


def _run(configurations: Sequence[Configuration], selection: str, seconds: float) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "configurations").write_text("\n".join(map(encode, configurations)))
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", __name__, folder],
            cwd=ROOT,
            env={**os.environ, "MEGATRON_PATCH": selection},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        if ended.returncode:
            raise RuntimeError(
                f"{selection} ended with {ended.returncode}:\n{ended.stderr[-3000:]}"
            )
        records: list[Any] = json.loads((work / "records").read_text())
        return records


def main(folder: str) -> None:
    """One process."""
    import logging

    import torch

    from megatron_patch import testing  # the patches wait for Megatron from now on

    from .. import same_bits
    from .running import run

    logging.disable(logging.WARNING)
    testing.start()
    same_bits.choose()
    torch.set_num_threads(1)
    lines = (Path(folder) / "configurations").read_text().splitlines()
    records = [run(decode(line)).record for line in lines]
    (Path(folder) / "records").write_text(json.dumps(records))


if __name__ == "__main__":
    main(sys.argv[1])
