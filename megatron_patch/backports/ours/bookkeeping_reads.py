"""Read back once what follows a step, and ask before it what needs no tokens (a change of ours).

After each step ``_dynamic_step_context_bookkeeping()`` waits for the model and its samples, and the
GPU does nothing from then until the host has launched the next step. What the host does after that
wait costs time; what it does before costs none.

In 0.18 and later the samples are what it waits for, and all the rest is on the host. The lengths of
the requests, which need no samples, are computed after the wait all the same, and so is which of
the requests ended, with four operators, where none did.

In 0.16 and 0.17 the bookkeeping is on the GPU. The host waits for the ids of the requests, then for
those of them that ended, and ``update_requests()`` waits for their counts, which take a launch for
each comparison and sum.

With this patch what needs no samples is computed before the wait, and where no request ended, none
is looked for: the mask of those that go on is read as a list. On 0.16 and 0.17 it is read together
with the ids. ``update_requests()`` of 0.16 counts in lists that are read once, writes to where it
belongs what it copied there, and where nothing is paused, does not count the blocks of what is. (On
0.17 and later ``single-token-update`` does that.) All results have the values that they had.

Not covered: the other numbers that the engine reads back in 0.16 and 0.17.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller:"
    "TextGenerationController._dynamic_step_context_bookkeeping"
)

BOOKKEEPING_READS = Patch(
    id="bookkeeping-reads",
    kind=Kind.PERFORMANCE,
    summary="Read back once what follows a step, and ask before it what needs no tokens",
    symptom=(
        "the GPU is idle while `_dynamic_step_context_bookkeeping()` looks for requests that ended "
        "in steps in which none did; on 0.16 and 0.17 with a wait for each number"
    ),
    outcome="the same bookkeeping, with less of it between two steps of the model",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16,<0.20",
    removal="upstream does as much before it waits, in all supported releases",
    updated="2026-11-27",
    target=TARGET,
    variants=(
        Variant("main-3cbe5c68a4", HUNKS.of("main-3cbe5c68a4")),
        Variant("0.16", HUNKS.of("0.16")),
        Variant("0.17", HUNKS.of("0.17")),
        Variant("0.18", HUNKS.of("0.18")),
        Variant("main-da5a81d491", HUNKS.of("main-da5a81d491")),
    ),
    told_by=(TARGET,),
)
