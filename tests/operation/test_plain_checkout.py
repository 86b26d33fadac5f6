"""On a checkout on ``PYTHONPATH``, which has no metadata of a distribution, all of ours runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_patch.testing.version import core_version

from ..unit.trees import PACKAGE_PARENT
from .test_source_patches import copy

pytestmark = pytest.mark.skipif(core_version() != "0.16.1", reason="the same on each release")

ROOT = Path(__file__).parents[2]

SCRIPT = """
import importlib.metadata, importlib, pathlib, sys, types
import pytest

try:
    sys.exit(f"there is metadata of {importlib.metadata.version('megatron-core')}")
except importlib.metadata.PackageNotFoundError:
    pass
from tools import benchmarking, decode_demo

sys.argv[1:] = ["--tokens", "2", "--requests", "1"]
assert decode_demo.main() == 0
for path in sorted(pathlib.Path("tools").rglob("*.py")):
    importlib.import_module(".".join(path.with_suffix("").parts))
import torch
from tools.differential import report, searching

print("machine:", benchmarking.machine(torch.device("cpu"))["megatron_core"])
search = searching.Search(None, None, ())
print("report:", report.text(report.of(search, types.SimpleNamespace(states={}), 0, 0)))
options = ["-q", "-p", "no:cacheprovider", "--assert=plain"]
sys.exit(pytest.main(["--collect-only", *options, "tests"]))
"""


def without_metadata(root: Path) -> list[str]:
    """``sys.path``, but with links to all that is beside the metadata of Megatron-Core."""
    search = []
    for number, place in enumerate(map(Path, sys.path)):
        if not any(place.glob("megatron_core-*.*-info")):
            search.append(str(place))
            continue
        links = root / f"links{number}"
        links.mkdir(parents=True)
        for entry in place.iterdir():
            if entry.name != "megatron" and not entry.name.startswith("megatron_core-"):
                (links / entry.name).symlink_to(entry)
        search.append(str(links))
    return search


def test_tools_and_tests_need_no_metadata(tmp_path):
    checkout = copy(tmp_path / "checkout")
    places = [str(checkout), PACKAGE_PARENT, str(ROOT), *without_metadata(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-S", "-W", "ignore", "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for line in ("megatron-core 0.16.1 on ", "machine: 0.16.1", "report: megatron-core 0.16.1 "):
        assert line in done.stdout
    assert "tests/operation/test_plain_checkout.py" in done.stdout
