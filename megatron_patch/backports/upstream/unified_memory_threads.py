"""Build an engine with unified memory in any thread (upstream #3390 in part).

The allocator of unified memory is compiled when the first engine needs it, with a limit of time
that is an alarm signal. Python sets handlers of signals in the main thread alone: in any other one,
such as that of a Ray actor, the engine cannot be built.

With this patch there is no limit in other threads, as upstream has it.

Not covered: a compilation that waits for ever, in another thread, for a lock that is stale.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = "megatron.core.inference.unified_memory:_compile_timeout"

UNIFIED_MEMORY_THREADS = Patch(
    id="unified-memory-threads",
    kind=Kind.CORRECTNESS,
    summary="Compile the allocator of unified memory in any thread",
    symptom=(
        "ValueError: signal only works in main thread of the main interpreter, from an engine with "
        "unified memory that is built in another thread, such as that of a Ray actor"
    ),
    outcome="the engine is built, with no limit of time for compiling",
    upstream_pr=3390,
    upstream_commit="261183027eb815226b24547ccc6e29b3dc13df2a",
    upstream_date="2026-02-13",
    fixed_in="0.17.0",
    releases=">=0.16,<0.17",
    removal="no supported release is older than 0.17.0",
    updated="2026-11-26",
    target=TARGET,
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(TARGET,),
)
