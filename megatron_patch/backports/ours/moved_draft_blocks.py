"""Write speculative tokens to the blocks of their own request (ours; upstream has no such change).

A request that is about to fill its last KV block is paused and resumed with a new one. Where its
next tokens begin in the block before and end in the new one, as with speculative tokens, the first
of them go to the block before. ``update_requests()`` notes the last block of each row for that, and
then moves requests to other rows: when it evicts one, or puts the one whose prompt is in chunks
last. The keys and values of the first tokens then go to the block of who had the row, over what is
there, and are missing in their own: tokens are other ones for both, and nothing says so.

With this patch the block before is read from the request's own blocks. Where no request is moved
that is the same one.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

REWIND = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller:"
    "TextGenerationController._rewind_kv_cache"
)

UPDATE = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext.update_requests"


MOVED_DRAFT_BLOCKS = Patch(
    id="moved-draft-blocks",
    kind=Kind.CORRECTNESS,
    summary="Write speculative tokens of a request that was moved to its own blocks",
    symptom=(
        "with speculative decoding and a small KV cache, tokens are wrong after a request was "
        "evicted, and differ from run to run"
    ),
    outcome="the tokens of each request alone",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.17,<0.20",
    removal="upstream reads the block from the request's own, and no supported release is older",
    updated="2026-11-26",
    target=REWIND,
    variants=(Variant("0.17", HUNKS.of("0.17")),),
    told_by=(UPDATE,),
)
