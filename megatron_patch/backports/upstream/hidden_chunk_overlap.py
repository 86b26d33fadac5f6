"""Let a prompt's next chunk wait for memory, with asynchronous scheduling (upstream #6442).

With chunked prefill a prompt is computed in several steps. When there are no blocks for its next
chunk, the step is for other requests alone, and the prompt's request is not in it. With
``async_sched_mode="async"``, which is opt-in, the controller looks for the request in each step:
AssertionError, which ends the engine.

With this patch it may be absent, and other requests go on until there are blocks.

What differs from upstream's commit 94939b85d5: steps do not overlap while a chunk waits. In a step
that overlaps, the rows of requests that end are filled up without a look at the row of the request
that waits, and the next chunk goes to another row: its tokens are wrong then, and so they are with
upstream's change alone: main needs this half still. Steps that do not overlap keep the books as
without asynchronous scheduling.

Not covered: the modes ``serial`` and ``overlap``, which main had in July 2026 before that one. They
refuse prompts in chunks.
"""

from __future__ import annotations

from ... import hunks
from ...edits import Requires
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

CONTROLLER = "megatron.core.inference.text_generation_controllers.text_generation_controller"

STATE = f"{CONTROLLER}:TextGenerationController._build_async_sched_request_state"

MAY_BE_ABSENT = Requires(STATE, "upstream's change is there: the request need not have a row")

HIDDEN_CHUNK_OVERLAP = Patch(
    id="hidden-chunk-overlap",
    kind=Kind.CORRECTNESS,
    summary="Let a prompt's next chunk wait for memory, with asynchronous scheduling",
    symptom=(
        "AssertionError: The active chunked-prefill request must have exactly one row, which ends "
        "an engine with async_sched_mode=async and chunked prefill when memory is short"
    ),
    outcome="the chunk waits until there are blocks, and other requests go on",
    upstream_pr=6442,
    upstream_commit="94939b85d538570f4f2a2c7f7cf41f58253141b0",
    upstream_date="2026-08-13",
    fixed_in="0.20.0",
    releases=">=0.19,<0.20",
    removal="no supported release is older than 0.20.0",
    updated="2026-11-26",
    target=STATE,
    variants=(
        Variant("0.19", HUNKS.of("0.19")),
        Variant("main-94939b85d5", (*HUNKS.of("main-94939b85d5"), MAY_BE_ABSENT)),
    ),
    told_by=(STATE,),
)
