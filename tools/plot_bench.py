"""Draw the figures of ``docs/benchmarks`` from the results of ``bench_decode.py``.

    python tools/plot_bench.py docs/benchmarks/h200/*.json --output docs/benchmarks/h200

Writes ``step-time`` and ``getter-time``, as SVG and as PNG. All results have to be of one device,
one attention and one size. What is captured in a CUDA graph may differ: releases name it otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
# The same bytes for the same results, and text that can be searched.
matplotlib.rcParams.update({"svg.hashsalt": "megatron_patch", "svg.fonttype": "none"})

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

Result = dict[str, Any]

WITHOUT, WITH = "none", "all"
COLORS = {WITHOUT: "#9aa5b1", WITH: "#2a6fdb"}
LABELS = {WITHOUT: "as released", WITH: "patched"}
WIDTH = 0.36

#: What is part of a bar's label, and not of the size.
SETTINGS = ("graph_scope", "mode")

#: What is captured in one CUDA graph, by its names.
SCOPES = {
    "none": "no graphs",
    "layer": "each layer",
    "block": "all layers",
    "full_iteration": "all layers",
    "full_iteration_inference": "all layers",
}


def load(paths: Sequence[Path]) -> list[Result]:
    """The results, by release. Raises ``ValueError`` if they do not belong together."""
    results: list[Result] = [json.loads(path.read_text()) for path in paths]
    for path, result in zip(paths, results, strict=True):
        for name in ("device", "attention", "options"):
            mine, its = _without_settings(result.get(name)), _without_settings(results[0].get(name))
            if mine != its:
                raise ValueError(
                    f"{path}: {name} is {mine}, and {its} in {paths[0]}; measure all releases alike"
                )
        missing = {WITHOUT, WITH} - result["selections"].keys()
        if missing:
            raise ValueError(f"{path}: no figures for {', '.join(sorted(missing))}")
    return sorted(results, key=lambda r: [int(part) for part in r["megatron_core"].split(".")[:3]])


def _without_settings(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: chosen for name, chosen in value.items() if name not in SETTINGS}


def label(result: Result) -> str:
    """What is written below the bars of ``result``, a word or two in each line."""
    options = result["options"]
    scope, mode = options.get("graph_scope"), options.get("mode")
    words = [result["megatron_core"], SCOPES.get(scope, scope), None if mode == "sync" else mode]
    return "\n".join(word for word in words if word)


def _bars(axes: Axes, results: Sequence[Result], values: dict[str, list[float]]) -> None:
    for index, (name, heights) in enumerate(values.items()):
        places = [place + (index - 0.5) * WIDTH for place in range(len(results))]
        bars = axes.bar(places, heights, WIDTH, color=COLORS[name], label=LABELS[name])
        axes.bar_label(bars, fmt="%.0f" if max(heights) > 100 else "%.1f", padding=2, fontsize=8)
    axes.set_xticks(range(len(results)), [label(result) for result in results])
    axes.set_xlabel("megatron-core")
    axes.spines[["top", "right"]].set_visible(False)


def step_time(axes: Axes, results: Sequence[Result]) -> None:
    """Time of a decode step per release, above the time that the GPU is busy in it."""
    steps = {
        name: [result["selections"][name]["step_us"]["median"] for result in results]
        for name in (WITHOUT, WITH)
    }
    _bars(axes, results, steps)
    for place, result in enumerate(results):
        busy = result["selections"][WITHOUT]["gpu_busy_us"]
        if busy is not None:
            name = "GPU busy" if place == 0 else "_"  # an underscore: not in the legend
            axes.hlines(busy, place - WIDTH, place + WIDTH, color="#d1495b", label=name)
    axes.set_ylabel("decode step, µs (median)")


def getter_time(axes: Axes, results: Sequence[Result]) -> None:
    """Time of the getter within steps per release; from 0.18 on it is upstream's own."""
    getter = {
        name: [result["selections"][name]["getter_us"] for result in results]
        for name in (WITHOUT, WITH)
    }
    _bars(axes, results, getter)
    axes.set_ylabel("current_input_and_position_ids(), µs per call")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        results = load(options.results)
    except ValueError as error:
        parser.error(str(error))
    options.output.mkdir(parents=True, exist_ok=True)
    for name, draw in ("step-time", step_time), ("getter-time", getter_time):
        figure, axes = plt.subplots(figsize=(max(7, len(results)), 4), layout="constrained")
        draw(axes, results)
        # Within the axes it would be on some of the bars.
        figure.legend(frameon=False, loc="outside lower center", ncols=3)
        size = results[0]["options"]
        axes.set_title(
            f"{results[0]['device']}, {size['layers']} layers, hidden {size['hidden']}, "
            f"{size['requests']} requests",
            fontsize=10,
        )
        figure.savefig(options.output / f"{name}.svg", metadata={"Date": None})
        figure.savefig(options.output / f"{name}.png", dpi=150)
        plt.close(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
