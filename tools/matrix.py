"""Random configurations of the engine, unpatched and patched, compared in all that a caller sees.

    python tools/matrix.py --seconds 600 --json 0.17.1.json
    python tools/matrix.py --repeat '{"requests":[{"stem":1}]}'

Each configuration (engine, requests, what happens between steps, who else is in the process) is
run with no patch, with the performance patches and with all. A performance patch may change
nothing. A correctness patch may change something only where the unpatched run is shown wrong, and
then the patched run has to be right. What is wrong with both, and is no known defect of the
release, is found too.

What the installed release lacks is not drawn. Everything is deterministic from the seed.

Runs on a CUDA device if there is one, with real graphs, streams and kernels, and otherwise on a CPU
with stand-ins for them. With flash-attn, everything is in bfloat16 and has blocks of 256 tokens,
which take prompts that are as many times longer; the model alone then tells of no token whether it
is right. On a GPU, an index out of range takes the device from the process: the configuration is
printed, and the search ends.

Exit status: 0 if nothing was found, 1 if something was, 2 for a bad command line or a device that
is not there.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

# A script's own directory is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

import megatron_patch
from megatron_patch import testing
from tools import same_bits
from tools.differential import fresh, judging, ranks, report
from tools.differential.configuration import Configuration, decode, encode
from tools.differential.devices import DeviceLostError
from tools.differential.drawing import Abilities
from tools.differential.searching import Found, Search, command, sample
from tools.differential.selections import ALL, Selections


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--examples", type=int, metavar="N", help="draw so many configurations")
    made.add_argument("--seconds", type=float, metavar="N", help="draw for so long (default: 600)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--patches",
        default=ALL,
        metavar="SELECTION",
        help="a value of MEGATRON_PATCH; default: all",
    )
    made.add_argument(
        "--ranks",
        choices=ranks.KINDS,
        help="run on two ranks that share each layer, or its experts",
    )
    made.add_argument(
        "--fresh",
        action="store_true",
        help="run in processes that import the patches before Megatron",
    )
    made.add_argument(
        "--fill",
        action="store_true",
        help="have PyTorch fill new memory with NaN and great numbers",
    )
    made.add_argument(
        "--repeat", metavar="CONFIGURATION", help="run this one alone; a failure prints it"
    )
    made.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="run there; default: on a CUDA device if there is one",
    )
    made.add_argument("--most", type=int, default=20, help="stop after so many findings")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Search or repeat, and report; returns the exit status."""
    options = parser().parse_args(arguments)
    warnings.simplefilter("ignore")  # Megatron's own, of optional packages
    logging.disable(logging.WARNING)
    if options.device == "cpu" or options.ranks is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before PyTorch looks for devices
    import torch

    if options.device == "cuda" and (options.ranks is not None or not torch.cuda.is_available()):
        parser().error("there is no CUDA device, or the ranks have none: they run on a CPU")
    # So that Megatron is imported as it was released: modules keep what they import by name.
    megatron_patch.uninstall()
    testing.start()
    same_bits.choose()
    torch.set_num_threads(1)  # more only get in each other's way with tensors this small
    if options.fill:  # a switch of PyTorch that is on by default, in this mode only
        torch.use_deterministic_algorithms(True, warn_only=True)
    selections = Selections(options.patches)
    # What was imported is no garbage, and Megatron searches it for some at the end of each run.
    gc.freeze()
    run_with = judging.runner(selections)
    try:
        applied = selections.applied(ALL)
        if options.repeat is not None:
            try:
                configuration = decode(options.repeat)
            except ValueError as error:
                parser().error(str(error))
            return repeat(configuration, run_with, applied)
        if options.ranks is not None:
            return on_ranks(options)
        if options.fresh:
            return in_fresh_processes(options)
        search = Search(Abilities.installed(), run_with, applied, told=_told)
        seconds = options.seconds or (600.0 if options.examples is None else None)
        begin = time.monotonic()
        search.run(
            options.seed,
            examples=options.examples,
            seconds=seconds,
            progress=_progress,
            most=options.most,
        )
        made = report.of(search, selections, options.seed, time.monotonic() - begin)
    finally:
        selections.close()
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps(made, indent=2) + "\n")
    print(report.text(made))
    for found in search.found:
        print(f"FOUND: {found}")
    if search.lost is not None:
        print(f"LOST: {search.lost}; repeat with\n  {command(search.lost.configuration)}")
    return 1 if search.found or search.lost is not None else 0


def repeat(configuration: Configuration, run_with: judging.Runner, applied: Sequence[str]) -> int:
    """Judge one configuration and print what it shows."""
    try:
        judgement = judging.judge(configuration, run_with)
    except DeviceLostError as error:
        print(f"LOST: {error}")
        return 1
    for finding in judgement.findings:
        patches = judging.attribute(configuration, finding, run_with, applied)
        print(f"FOUND: {Found(configuration, finding, 1, tuple(patches))}")
    print(f"fixed: {judgement.fixed}; known defects: {', '.join(judgement.known) or 'none'}")
    return 1 if judgement.findings else 0


def on_ranks(options: argparse.Namespace) -> int:
    """Draw configurations, run them on two ranks, and print what they show."""
    able = Abilities.installed()
    if options.ranks == "expert" and not able.experts:
        print("this release runs experts with Transformer Engine only, which is not installed")
        return 0
    number = options.examples or 50
    drawn = [ranks.suited(item, options.ranks) for item in sample(able, number, seed=options.seed)]
    results = ranks.judge_all(drawn, options.ranks, options.patches, seconds=options.seconds or 600)
    found = [result for result in results if result.findings]
    print(f"{len(results)} configurations on {ranks.WORLD} ranks, {len(found)} found")
    for result in found:
        print("FOUND:", *result.findings, encode(result.configuration), sep="\n  ")
    return 1 if found else 0


def in_fresh_processes(options: argparse.Namespace) -> int:
    """Draw configurations, run them in fresh processes, and print what differs."""
    drawn = [
        # Company is left out: here the patches have to be the first in the process.
        item if item.company is None else replace(item, company=None)
        for item in sample(Abilities.installed(), options.examples or 50, seed=options.seed)
    ]
    results = fresh.compare(drawn, seconds=options.seconds or 600)
    print(f"{len(drawn)} configurations in fresh processes, {len(results)} found")
    for result in results:
        print(f"FOUND: {result}")
    return 1 if results else 0


def _told(configuration: Configuration, finding: judging.Finding) -> None:
    """What was found, before it is made smaller, which takes a minute: a search may be killed."""
    print(f"found: {finding}\n  {command(configuration)}", file=sys.stderr, flush=True)


def _progress(search: Search) -> None:
    """One line on stderr, written over, so that stdout has the results only."""
    if sys.stderr.isatty():
        text = f"{search.examples} configurations, {len(search.found)} found"
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
