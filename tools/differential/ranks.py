"""Configurations on two ranks, over gloo: tensor or expert parallelism.

Each rank is a process of its own, and all run the same configurations in the same order. With
tensor parallelism they have the same requests; with expert parallelism every other one, and a rank
without any takes part in the steps of the other with a dummy step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from . import judging
from .configuration import GREEDY, LONGEST, LONGEST_PROMPT, Configuration, decode, encode
from .drawing import SAMPLINGS
from .observing import Observation
from .running import ALONE, Peers, run
from .selections import Selections

WORLD = 2
KINDS = ("tensor", "expert")
SECONDS_OF_COLLECTIVE = 60


@dataclass(frozen=True)
class Result:
    """What the ranks found of one configuration."""

    configuration: Configuration
    findings: list[str]
    """Those of all ranks."""


def suited(configuration: Configuration, kind: str) -> Configuration:
    """The configuration without what ranks cannot share, such as company and trainers."""
    found = replace(
        configuration,
        company=None,
        lessons=(),
        captured=False,
        scope=None,
        speculative=0,
        experts=4 if kind == "expert" else None,
        recompute=False,
        grouped=False,
        happenings=tuple(
            item for item in configuration.happenings if item.what in ("suspend", "epoch")
        ),
    )
    if kind == "expert":
        # A rank that is suspended, or whose engine has ended, cannot take part in the steps of the
        # other, which would wait for it: so nothing that ends the engine of a release is left in.
        plans = tuple(
            replace(
                plan,
                length=min(max(plan.length, 2), LONGEST_PROMPT),
                num_tokens=min(max(plan.num_tokens, 1), LONGEST - LONGEST_PROMPT),
                sampling=plan.sampling if plan.sampling in SAMPLINGS else GREEDY,
                stop=None,
                end=None,
                odd_stop=None,
                log_probs=None if plan.log_probs is None else "generated",
            )
            for plan in configuration.requests
        )
        return replace(
            found,
            requests=plans,
            happenings=(),
            prefix=None,
            chunked=False,
            spare_blocks=None,
            latents=False,
        )
    return found


def share(configuration: Configuration, kind: str, rank: int) -> Configuration:
    """The part of the configuration that one rank runs."""
    if kind == "tensor":
        return configuration
    return replace(configuration, requests=configuration.requests[rank::WORLD])


class Together(Peers):
    """Ranks that make their steps together."""

    share_experts = True

    def any(self, one: bool) -> bool:
        return self._most(one)

    def all(self, one: bool) -> bool:
        return not self._most(not one)

    def _most(self, one: bool) -> bool:
        import torch

        flag = torch.tensor([int(one)])
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())


def judge_all(
    configurations: Sequence[Configuration], kind: str, patches: str, seconds: float
) -> list[Result]:
    """Run configurations on all ranks.

    Raises:
        RuntimeError: a rank failed; the message has what it printed.
        subprocess.TimeoutExpired: the ranks took longer than ``seconds``.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "configurations").write_text("\n".join(map(encode, configurations)))
        command = [sys.executable, "-W", "ignore", "-m", __name__, folder, kind, patches]
        with ExitStack() as stack:
            ranks = [
                subprocess.Popen(
                    [*command, str(rank)],
                    cwd=Path(__file__).parents[2],
                    stdout=subprocess.DEVNULL,
                    stderr=stack.enter_context((work / f"errors{rank}").open("w")),
                )
                for rank in range(WORLD)
            ]
            try:
                codes = [rank.wait(timeout=seconds) for rank in ranks]
            finally:
                for rank in ranks:
                    rank.kill()
                    rank.wait()
        if any(codes):
            errors = [(work / f"errors{rank}").read_text()[-3000:] for rank in range(WORLD)]
            raise RuntimeError(f"ranks ended with {codes}:\n" + "\n".join(errors))
        found = [json.loads((work / f"findings{rank}").read_text()) for rank in range(WORLD)]
    return [
        Result(configuration, [text for texts in of_ranks for text in texts])
        for configuration, *of_ranks in zip(configurations, *found, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """One rank."""
    parser = argparse.ArgumentParser()
    for name in ("folder", "kind", "patches", "rank"):
        parser.add_argument(name)
    options = parser.parse_args(arguments)
    rank, folder = int(options.rank), Path(options.folder)
    import torch

    import megatron_patch
    from megatron_patch import testing

    megatron_patch.uninstall()
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=SECONDS_OF_COLLECTIVE),
    )
    sizes = (WORLD, 1) if options.kind == "tensor" else (1, WORLD)
    testing.start(*sizes)
    selections = Selections(options.patches)

    peers = Together() if options.kind == "expert" else ALONE

    def run_with(configuration: Configuration, selection: str) -> Observation:
        torch.distributed.barrier()
        with selections.force(selection):
            seen = run(configuration, peers)
        if peers.share_experts and seen.record["error"] is not None:
            # The other rank waits for this one, in vain.
            raise RuntimeError(f"{selection}: {seen.record['error']} in {encode(configuration)}")
        seen.patches = frozenset(selections.applied(selection))
        return seen

    findings = []
    for line in (folder / "configurations").read_text().splitlines():
        configuration = share(decode(line), options.kind, rank)
        judgement = judging.judge(configuration, run_with, everything=True)
        findings.append([f"rank {rank}: {finding}" for finding in judgement.findings])
    (folder / f"findings{rank}").write_text(json.dumps(findings))
    testing.stop()


if __name__ == "__main__":
    main()
