"""A short matrix of the installed release, in a process of its own.

`python tools/matrix.py` makes the long one. This process will not do, because it
has imported Megatron with the patches: what modules import by name would be patched in the
unpatched runs, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_patch.backports import SERIES

from ..conftest import SOURCE

ROOT = Path(__file__).parents[2]

EXAMPLES = 30
"""A quarter of a minute where nothing else runs."""


@pytest.mark.skipif(SOURCE, reason="the source itself is patched: there is no unpatched run")
def test_no_difference_that_nothing_explains(tmp_path):
    file = tmp_path / "report.json"
    command = [sys.executable, "tools/matrix.py", "--examples", str(EXAMPLES), "--json", str(file)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    report = json.loads(file.read_text())
    assert report["configurations"] >= EXAMPLES
    assert report["dimensions"]["arrival"].keys() == {"at once", "staggered"}
    # Nothing here imports the HTTP server, or Mamba layers.
    waiting = {patch.id for patch in SERIES if patch.may_stay_pending}
    states = {state for id, state in report["patches"].items() if id not in waiting}
    assert not {"drifted", "failed", "shadowed", "pending"} & states
