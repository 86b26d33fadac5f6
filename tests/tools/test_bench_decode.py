"""The benchmark of decode steps, at a size for a CPU."""

from __future__ import annotations

import json
import os
import random

import numpy as np
import pytest
import torch

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.testing.releases import engine_class
from tools import bench_decode, benchmarking

SIZE = "--layers=1 --hidden=32 --heads=2 --vocabulary=64 --requests=12 --prompt=4 --tokens=9"
SMALL = [*SIZE.split(), "--rounds=2", "--cuda-graphs=2"]


@pytest.fixture(scope="module", autouse=True)
def engine(device):
    """The engine's import wants a real stderr, which it is too late for within a test."""
    engine_class()


def test_selections_alternate_and_their_outputs_are_equal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEGATRON_PATCH", "-step-log-sync")
    file = tmp_path / "result.json"
    assert bench_decode.main([*SMALL, f"--json={file}", "--commit=0123"]) == 0
    result = json.loads(file.read_text())
    assert result["commit"] == "0123"
    assert (result["options"]["layers"], result["options"]["requests"]) == (1, 12)
    selections = result["selections"]
    assert list(selections) == ["none", "input-position-view-cache", "all"]
    assert selections["none"]["applied"] == []
    assert "difference_us" not in selections["none"]
    for name, values in selections.items():
        assert values["equal_outputs"]
        assert 0 < values["getter_us"] < values["step_us"]["median"]
        assert values["step_us"]["p10"] <= values["step_us"]["median"] <= values["step_us"]["p90"]
        # Nine steps a round, but the first three and the last.
        assert values["steps"] == 2 * 5
        if name != "none":
            difference = values["difference_us"]
            assert difference["low"] <= difference["median"] <= difference["high"]
    printed = capsys.readouterr().out
    assert "  all: " in printed
    assert "OUTPUTS DIFFER" not in printed
    assert os.environ["MEGATRON_PATCH"] == "-step-log-sync"


def test_outputs_that_differ_are_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(bench_decode, "equal", lambda one, other: one is other)
    assert bench_decode.main([*SMALL, "--select=none", "--select=all"]) == 1
    assert "OUTPUTS DIFFER" in capsys.readouterr().out


def decoded(tokens, logits):
    return testing.Decoded(tokens, tuple(map(torch.tensor, logits)), 1, (), ())


def test_equal_is_bit_for_bit_and_leaves_padding_out():
    one = decoded(((1,), (2,)), ([[1.0, 2.0, 3.0]],))
    assert bench_decode.equal(one, decoded(((1,), (2,)), ([[1.0, 2.0, 9.0]],)))
    assert not bench_decode.equal(one, decoded(((1,), (3,)), ([[1.0, 2.0, 3.0]],)))
    assert not bench_decode.equal(one, decoded(((1,), (2,)), ([[1.0, 2.0 + 1e-6, 3.0]],)))
    assert not bench_decode.equal(one, decoded(((1,), (2,)), ()))


@pytest.mark.parametrize(
    ("spans", "busy"),
    [
        ([], 0),
        ([(0, 2), (5, 6)], 3),
        ([(5, 6), (0, 2), (1, 3)], 4),
        ([(0, 10), (2, 3), (4, 12)], 12),
    ],
)
def test_time_on_several_streams_at_once_counts_once(spans, busy):
    assert bench_decode.busy_microseconds(spans) == busy


def test_the_interval_is_that_of_the_median():
    draw = random.Random(0)
    differences = [draw.gauss(-20, 4) for _ in range(25)]
    low, high = bench_decode.interval(differences)
    assert low < np.median(differences) < high
    assert -24 < low < -20 < high < -16
    assert bench_decode.interval([3.0] * 5) == (3.0, 3.0)


def test_a_selection_holds_within_its_block_only(monkeypatch):
    monkeypatch.delenv("MEGATRON_PATCH", raising=False)
    before = megatron_patch.status()
    with benchmarking.selected("none") as applied:
        assert applied == []
        assert {entry.state for entry in megatron_patch.status()} == {State.DISABLED}
    assert megatron_patch.status() == before


@pytest.mark.parametrize("option", ["--rounds=1", "--tokens=5"])
def test_too_few_to_say_anything(option, capsys):
    with pytest.raises(SystemExit):
        bench_decode.main([option])
    assert "must be at least" in capsys.readouterr().err
