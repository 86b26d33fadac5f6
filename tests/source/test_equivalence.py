"""Megatron with the patches in its source decodes what the released one with the patches does.

This process imports the former, and a child runs the latter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_patch.testing.releases import release

from ..conftest import SOURCE
from . import decoding

pytestmark = pytest.mark.skipif(
    not SOURCE, reason="needs MEGATRON_PATCH_TEST_SOURCE=1 and a tree of tools/patched_tree.py"
)


@pytest.fixture(scope="module")
def from_source(device):  # type: ignore[no-untyped-def]
    return decoding.everything()


@pytest.fixture(scope="module")
def at_run_time(from_source, tmp_path_factory):  # type: ignore[no-untyped-def]
    file = tmp_path_factory.mktemp("released") / "decoded.pt"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEGATRON_PATCH")}
    path = environment.get("PYTHONPATH", "").split(os.pathsep)
    kept = [place for place in path if os.path.realpath(place) != from_source["root"]]
    environment["PYTHONPATH"] = os.pathsep.join(kept)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", decoding.__name__, str(file)],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.load(file)


def test_they_are_two_trees(from_source, at_run_time):
    assert from_source["root"] != at_run_time["root"]


@pytest.mark.parametrize("way", decoding.WAYS)
def test_tokens_and_logits_are_bit_identical(from_source, at_run_time, way):
    one, other = from_source["decoded"][way], at_run_time["decoded"][way]
    if one is None and other is None:
        pytest.skip(f"{release()} does not decode in this way")
    requests = decoding.requests_of(way)
    assert [len(tokens) for tokens in one["tokens"]] == [r.num_tokens for r in requests]
    assert one["tokens"] == other["tokens"]
    assert len(one["logits"]) == len(other["logits"])
    for step, (here, there) in enumerate(zip(one["logits"], other["logits"], strict=True)):
        assert here.equal(there), step
