"""Refuse a request that needs more KV blocks than it can ever get (upstream #5950 in part, #4114).

A request with a longer sequence than the KV cache has blocks for is taken, and then cannot go on:

- 0.14 and 0.15 hold it back for ever, and all requests behind it. So does main between 0.15 and
  0.16, where prompts get only the blocks of active requests, which are half of all.
- In 0.16 and 0.17 it waits likewise if its prompt is too long. If its prompt fits, it takes all
  blocks, is paused when it needs one more, and ``active_request_count == 0`` ends the engine.
- Since 0.18 (#4114) it is refused, but measured against all blocks, where a request that grows gets
  only those of active requests: with a paused buffer the engine ends as in 0.17. And the last token
  is counted, which is never stored: a request that just fits is refused.

With this patch such a request is refused by ``add_request()``, with the status and the error event
that the release has for others (0.14: ``add_request()`` raises ``ChunkOverflowError``, and
``TokenOverflowError`` for a prompt of more than ``max_tokens``). All others go on.

What differs from upstream's commit 3fd8f33076: it measures the prompt, too, against the blocks of
active requests. A prompt may take all blocks, and a request that needs no block beyond those of its
prompt is served today: it still is.

As upstream does, this measures what a request asks for. One that could have ended earlier, at its
termination id, is refused where the engine would have ended had it gone on.

Not covered: requests that fit alone, and wait for the blocks of others.
"""

from __future__ import annotations

from ... import hunks
from ...edits import Requires
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ENGINE = "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine"

# All releases have it; 0.14 refuses requests there.
ADD = f"{ENGINE}.add_request"

_ADD = f"{ENGINE}._add_request"


def counted_by(allocator: str) -> Requires:
    """What the helper takes from the context's allocator is there, and means that."""
    return Requires(
        f"megatron.core.inference.contexts.{allocator}.__init__",
        "the blocks that there are, and how many of them requests that grow can take",
    )


REQUEST_BLOCK_LIMIT = Patch(
    id="request-block-limit",
    kind=Kind.CORRECTNESS,
    summary="Refuse a request that needs more KV blocks than it can ever get",
    symptom=(
        "AssertionError: active_request_count == 0 ends the engine, or a request waits for ever "
        "and blocks the queue, when its prompt and num_tokens_to_generate need more KV blocks than "
        "buffer_size_gb has, or than are left of it beside paused_buffer_size_gb"
    ),
    outcome="that request alone fails at add_request(), with BlockOverflowError in its events",
    upstream_pr=5950,
    upstream_commit="3fd8f330760456fb5ff5869e220194e33e30bc83",
    upstream_date="2026-07-30",
    fixed_in="0.20.0",
    releases=">=0.14,<0.20",
    removal="no supported release is older than 0.20.0",
    updated="2026-11-26",
    target=ADD,
    variants=(
        Variant("0.14", (*HUNKS.of("0.14"), counted_by("dynamic_chunk_allocator:ChunkAllocator"))),
        Variant(
            "main-ee0b4a2f97",
            (
                *HUNKS.of("main-ee0b4a2f97"),
                counted_by("dynamic_chunk_allocator:ChunkAllocator"),
            ),
        ),
        Variant("0.15", (*HUNKS.of("0.15"), counted_by("dynamic_block_allocator:BlockAllocator"))),
        Variant(
            "main-d6979d6cce",
            (
                *HUNKS.of("main-d6979d6cce"),
                counted_by("dynamic_block_allocator:BlockAllocator"),
            ),
        ),
        Variant("0.16", (*HUNKS.of("0.16"), counted_by("dynamic_block_allocator:BlockAllocator"))),
        Variant("0.17", (*HUNKS.of("0.17"), counted_by("kv_block_allocator:KVBlockAllocator"))),
        Variant("0.18", (*HUNKS.of("0.18"), counted_by("kv_block_allocator:KVBlockAllocator"))),
    ),
    told_by=(_ADD,),
)
