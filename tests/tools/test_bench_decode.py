"""The benchmark of decode steps, at a size for a CPU."""

from __future__ import annotations

import itertools
import json
import os
import random

import numpy as np
import pytest
import torch

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.testing import graph_scopes
from megatron_patch.testing.releases import context_parameters, engine_class
from tools import bench_decode, benchmarking

SIZE = "--layers=1 --hidden=32 --heads=2 --vocabulary=64 --requests=12 --prompt=4 --tokens=9"
SMALL = [*SIZE.split(), "--rounds=2", "--cuda-graphs=2"]


@pytest.fixture(scope="module", autouse=True)
def engine(device):
    """Import the engine before the test, because the import needs a real stderr."""
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
        # Nine steps a round, without the first three and the last.
        assert values["steps"] == 2 * 5
        if name != "none":
            difference = values["difference_us"]
            assert difference["low"] <= difference["median"] <= difference["high"]
    printed = capsys.readouterr().out
    assert "  all: " in printed
    assert "OUTPUTS DIFFER" not in printed
    assert os.environ["MEGATRON_PATCH"] == "-step-log-sync"


def test_outputs_that_differ_are_a_failure(monkeypatch, capsys):
    runs = itertools.count()

    def another_each_time(engine, requests):
        return bench_decode.Outputs((), (str(next(runs)),))

    monkeypatch.setattr(bench_decode, "outputs", another_each_time)
    assert bench_decode.main([*SMALL, "--select=none", "--select=all"]) == 1
    assert "OUTPUTS DIFFER" in capsys.readouterr().out


def test_a_digest_is_of_all_bits_but_those_of_padding():
    def digest(*row):
        return bench_decode.digest(torch.tensor([[row[:2], row[2:]]], dtype=torch.bfloat16), 1)

    assert digest(1.0, 2.0, 3.0, 4.0) == digest(1.0, 2.0, 3.0, 9.0)
    assert digest(1.0, 2.0, 3.0, 4.0) != digest(1.0, 2.015625, 3.0, 4.0)
    assert digest(0.0, 2.0, 3.0, 4.0) != digest(-0.0, 2.0, 3.0, 4.0)


def test_tokens_and_latencies_of_steps():
    steps = [2000.0] * 99 + [4000.0]
    figures = bench_decode.token_figures(steps, requests=8)
    assert figures["tokens_per_second"] == pytest.approx(8e6 / 2020)
    assert figures["token_latency_us"]["p50"] == 2000
    assert figures["token_latency_us"]["p99"] == pytest.approx(2020)


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


def test_prompts_that_take_several_steps_are_not_timed(tmp_path):
    file = tmp_path / "result.json"
    size = "--requests=3 --prompt=700 --prefill-tokens=700 --kv-heads=1 --ffn=48 --style=llama"
    assert bench_decode.main([*SMALL, *size.split(), "--select=none", f"--json={file}"]) == 0
    result = json.loads(file.read_text())
    # Nine steps with all tokens of the first request: two before the last prompt is read, its own
    # and two more, and the one in which requests end.
    assert result["selections"]["none"]["steps"] == 2 * 3
    assert result["reproducible"]
    assert result["attention"] == "stand-in of megatron_patch.testing"
    assert result["capture"] is None


def test_the_graphs_of_the_release_are_captured_and_their_cost_is_said(tmp_path, capsys):
    *_, widest = graph_scopes.known_scopes()
    file = tmp_path / "result.json"
    scope = f"--graph-scope={widest}"
    assert bench_decode.main([*SMALL, scope, "--select=none", f"--json={file}"]) == 0
    result = json.loads(file.read_text())
    assert result["options"]["graph_scope"] == widest
    assert result["capture"]["seconds"] > 0
    assert "CUDA graphs captured in" in capsys.readouterr().out
    testing.drop_cuda_graphs()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (
            "--graph-scope=everything",
            "has no graph scope 'everything'; expected one of: none, layer",
        ),
        ("--mode=async", "has no mode 'async'; expected sync"),
    ],
)
def test_what_the_release_has_not_is_refused(option, says, capsys):
    if option == "--mode=async" and "async_sched_mode" in context_parameters():
        pytest.skip("this release has it")
    with pytest.raises(SystemExit):
        bench_decode.main([*SMALL, option])
    assert says in capsys.readouterr().err


def test_the_kv_cache_is_as_large_as_grouped_heads_need():
    size = dict(num_layers=32, hidden_size=4096, num_attention_heads=32, block_size_tokens=256)
    all_heads = benchmarking.kv_gib(**size, num_query_groups=None, dtype="bfloat16", blocks=64)
    grouped = benchmarking.kv_gib(**size, num_query_groups=8, dtype="bfloat16", blocks=64)
    assert all_heads == pytest.approx(4 * grouped)
    # 128 KiB a token, 256 tokens a block.
    assert grouped == pytest.approx(64.5 * 32 / 1024)


@pytest.mark.parametrize("option", ["--rounds=1", "--tokens=5"])
def test_too_few_to_say_anything(option, capsys):
    with pytest.raises(SystemExit):
        bench_decode.main([option])
    assert "must be at least" in capsys.readouterr().err
