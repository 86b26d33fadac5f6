"""The figures, from results that are made up."""

from __future__ import annotations

import json

import pytest

from tools import plot_bench


def result(version, *, device="GPU", step=2000.0, requests=16, attention=None, **settings):
    return {
        "megatron_core": version,
        "device": device,
        "attention": attention,
        "options": {"layers": 4, "hidden": 1024, "requests": requests, **settings},
        "selections": {
            name: {
                "step_us": {"median": step * share},
                "gpu_busy_us": 900.0,
                "getter_us": 7 * share,
            }
            for name, share in (("none", 1.0), ("all", 0.75))
        },
    }


@pytest.fixture
def write(tmp_path):
    def write(*results):
        paths = [tmp_path / f"{index}.json" for index in range(len(results))]
        for path, values in zip(paths, results, strict=True):
            path.write_text(json.dumps(values))
        return paths

    return write


def draw(paths, folder):
    return plot_bench.main([*map(str, paths), "--output", str(folder)])


def test_both_figures_in_both_formats_and_always_the_same_bytes(write, tmp_path):
    paths = write(result("0.18.2"), result("0.9.1", step=2789.0))
    assert draw(paths, tmp_path / "one") == 0
    assert draw(paths, tmp_path / "two") == 0
    names = {"step-time.svg", "step-time.png", "getter-time.svg", "getter-time.png"}
    assert {path.name for path in (tmp_path / "one").iterdir()} == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    text = (tmp_path / "one" / "step-time.svg").read_text()
    assert text.index(">0.9.1<") < text.index(">0.18.2<")
    for label in (">2789<", ">2092<", ">GPU busy<", ">as released<", ">patched<"):
        assert label in text


def test_graph_scopes_and_modes_may_differ_and_are_said(write, tmp_path):
    paths = write(
        result("0.17.1", graph_scope="full_iteration_inference", mode="sync"),
        result("0.19.2", graph_scope="block", mode="async"),
    )
    assert draw(paths, tmp_path) == 0
    text = (tmp_path / "step-time.svg").read_text()
    for label in (">all layers<", ">async<", ">0.17.1<", ">0.19.2<"):
        assert label in text


def test_without_a_gpu_there_is_no_floor(write, tmp_path):
    values = result("0.16.1", device="CPU")
    values["selections"]["none"]["gpu_busy_us"] = None
    assert draw(write(values), tmp_path) == 0
    assert "GPU busy" not in (tmp_path / "step-time.svg").read_text()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"device": "another"}, "device is another, and GPU in"),
        ({"attention": "flash-attn 2.8.3"}, "attention is flash-attn 2.8.3, and None in"),
        ({"requests": 8}, "measure all releases alike"),
    ],
)
def test_results_that_cannot_be_compared(write, tmp_path, other, says, capsys):
    paths = write(result("0.16.1"), result("0.17.1", **other))
    with pytest.raises(SystemExit):
        draw(paths, tmp_path)
    assert says in capsys.readouterr().err


def test_results_without_both_selections(write, tmp_path, capsys):
    values = result("0.16.1")
    del values["selections"]["all"]
    with pytest.raises(SystemExit):
        draw(write(values), tmp_path)
    assert "no figures for all" in capsys.readouterr().err
