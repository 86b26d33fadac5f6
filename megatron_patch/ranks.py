"""Make sure that all ranks of a process group run the same patches on the same Megatron."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .errors import RankMismatchError
from .states import PatchStatus, State

Summary = Mapping[str, str]


def verify_ranks(
    statuses: Sequence[PatchStatus],
    version: str | None,
    package: str,
    variables: Mapping[str, str],
    group: Any,
    may_stay_pending: Collection[str] = (),
) -> None:
    """See :func:`megatron_patch.verify_ranks`; ``may_stay_pending`` are ids of patches."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        raise RuntimeError(
            "verify_ranks() needs an initialised process group: call it after "
            "torch.distributed.init_process_group()"
        )
    if distributed.get_rank(group) < 0:
        return  # this process has no part in the group
    mine = (summary(statuses, version, package), dict(variables))
    everyone: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(everyone, mine, group=group)
    members = distributed.get_process_group_ranks(group or distributed.group.WORLD)
    summaries, settings = (
        dict(zip(members, column, strict=True)) for column in zip(*everyone, strict=True)
    )
    problems = differences(summaries, may_stay_pending)
    if problems:
        problems += causes(settings)
        raise RankMismatchError("the ranks do not run the same:\n" + "\n".join(problems))


def summary(statuses: Sequence[PatchStatus], version: str | None, package: str) -> Summary:
    """What has to be the same on all ranks, by name."""
    return {
        "megatron-core": version or "not found",
        "megatron_patch": package,
        **{entry.id: f"{entry.state} ({entry.reason})" for entry in statuses},
    }


def differences(
    everyone: Mapping[int, Summary], may_stay_pending: Collection[str] = ()
) -> list[str]:
    """A line for each name that the summaries, by rank, differ in or that is still pending."""
    problems = []
    for name in dict.fromkeys(name for one in everyone.values() for name in one):
        values = {rank: one.get(name, "unknown there") for rank, one in everyone.items()}
        first = values[min(values)]
        if len(set(values.values())) > 1:
            problems.append(f"  {name}: {_groups(values)}")
        elif first.startswith(f"{State.PENDING} ") and name not in may_stay_pending:
            problems.append(
                f"  {name}: {first} on all ranks; call verify_ranks() after the import of "
                "Megatron's inference engine and when the model is built"
            )
    return problems


def causes(everyone: Mapping[int, Mapping[str, str]]) -> list[str]:
    """A line for each environment variable that is not the same on all ranks.

    Of itself that is no difference: other text may say the same.
    """
    found = []
    for name in sorted({name for variables in everyone.values() for name in variables}):
        values = {
            rank: repr(variables[name]) if name in variables else "not set"
            for rank, variables in everyone.items()
        }
        if len(set(values.values())) > 1:
            found.append(f"  set differently: {name}: {_groups(values)}")
    return found


def _groups(values: Mapping[int, str]) -> str:
    """Each value, the most common one first, with the ranks that have it."""
    return "; ".join(
        f"{value} on {_span([rank for rank in values if values[rank] == value])}"
        for value, _ in Counter(values.values()).most_common()
    )


def _span(ranks: Sequence[int]) -> str:
    """``ranks 0-2, 5`` for ``[0, 1, 2, 5]``."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], rank]
        else:
            spans.append([rank])
    text = ", ".join("-".join(map(str, span)) for span in spans)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"
