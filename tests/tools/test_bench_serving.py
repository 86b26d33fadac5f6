"""The benchmark of a whole serving run, at a size for a CPU."""

from __future__ import annotations

import json

import numpy as np
import pytest

from megatron_patch import testing
from megatron_patch.testing.releases import engine_class
from tools import bench_serving

SIZE = "--layers=1 --hidden=32 --heads=2 --vocabulary=64 --block-size=8 --cuda-graphs=2"
LOAD = "--requests=6 --at-once=4 --prompt=8 --tokens=4 --shared-prefix=16 --prefill-tokens=32"
SMALL = [*SIZE.split(), *LOAD.split()]


@pytest.fixture(scope="module", autouse=True)
def engine(device):
    """Import the engine before the test, because the import needs a real stderr."""
    engine_class()


def load(**changes):
    options = {
        "seed": 1,
        "requests": 400,
        "prompt": 100,
        "tokens": 20,
        "sigma": 0.6,
        "rate": 50.0,
        "vocabulary": 64,
        "shared_prefix": 8,
    }
    return bench_serving.arrivals(type("Options", (), {**options, **changes}))


@pytest.mark.parametrize("rate", ["0", "200"])
def test_selections_take_turns_and_give_the_same_tokens(rate, tmp_path, capsys):
    file = tmp_path / "result.json"
    arguments = [*SMALL, f"--rate={rate}", "--repeats=2", f"--json={file}", "--commit=0123"]
    assert bench_serving.main(arguments) == 0
    result = json.loads(file.read_text())
    assert result["commit"] == "0123"
    assert result["attention"] == "stand-in of megatron_patch.testing"
    assert result["load"]["requests"] == 6
    assert (result["load"]["last_arrival_s"] > 0) == (rate != "0")
    selections = result["selections"]
    assert list(selections) == ["none", "all"]
    assert selections["none"]["applied"] == []
    assert selections["all"]["applied"]
    for values in selections.values():
        assert values["differing_requests"] == [0, 0]
        assert len(values["tokens_per_second"]["each"]) == 2
        assert 0 < values["first_token_ms"]["p50"] <= values["last_token_ms"]["p50"]
        for name in ("first_token_ms", "between_tokens_ms", "last_token_ms"):
            assert values[name]["p50"] <= values[name]["p99"]
    if rate == "0":
        # Nothing of an earlier run is left, such as cached prefixes.
        assert len({steps for values in selections.values() for steps in values["steps"]}) == 1
    assert "  all: " in capsys.readouterr().out


def test_the_load_is_drawn_from_the_seed():
    drawn = load()
    assert drawn == load()
    assert drawn != load(seed=2)
    prompts = np.array([len(item.request.prompt) - 8 for item in drawn])
    outputs = np.array([item.request.num_tokens for item in drawn])
    for lengths, median in ((prompts, 100), (outputs, 20)):
        assert 1 <= lengths.min()
        assert lengths.max() <= 4 * median
        assert 0.8 < np.median(lengths) / median < 1.2
        assert 0.4 < np.log(lengths).std() < 0.7
    assert len({item.request.prompt[:8] for item in drawn}) == 1
    assert len({item.request.prompt for item in drawn}) == len(drawn)
    times = [item.seconds for item in drawn]
    assert times == sorted(times)
    assert 0.8 < times[-1] / (400 / 50) < 1.2
    assert {item.seconds for item in load(rate=0.0)} == {0.0}


def run(*tokens):
    return bench_serving.Run(1.0, 1, (), (), (), tokens)


def test_a_patch_that_changes_tokens_is_a_failure_where_steps_are_the_same():
    assert bench_serving.differing(run((1, 2), (3,)), run((1, 2), (4,))) == 1

    def result(mine, other):
        return {
            "selections": {
                "none": {"differing_requests": mine},
                "all": {"differing_requests": other},
            }
        }

    assert bench_serving.failed(result([0, 0], [0, 1]), rate=0)
    assert not bench_serving.failed(result([0, 0], [0, 1]), rate=5.0)
    assert not bench_serving.failed(result([0, 2], [2, 1]), rate=0)
    assert not bench_serving.failed(result([0, 0], [0, 0]), rate=0)


def test_a_request_that_the_engine_ends_early_is_an_error(monkeypatch):
    class Options:
        seed, requests, prompt, tokens, sigma = 0, 1, 4, 3, 0.1
        rate, vocabulary, shared_prefix = 0.0, 64, 0

    arrival = bench_serving.arrivals(Options)[0]
    engine = testing.build_engine(testing.EngineSpec(vocab_size=64))
    monkeypatch.setattr(
        bench_serving.Followed, "generated", property(lambda item: (1,)), raising=True
    )
    with pytest.raises(RuntimeError, match="the engine ended"):
        bench_serving.serve(engine, [arrival])


def test_nothing_to_serve(capsys):
    with pytest.raises(SystemExit):
        bench_serving.main([*SMALL, "--requests=0"])
    assert "--requests must be at least 1" in capsys.readouterr().err
