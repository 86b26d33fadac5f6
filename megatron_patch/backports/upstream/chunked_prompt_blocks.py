"""Give a prompt in chunks all of its KV blocks at once (upstream #3840 in part).

A prompt in chunks is admitted when there are blocks for all of it, but gets those of its first
chunk only. If other requests take the rest, the next chunk waits. Meanwhile the request is decoded
like others: from a token that means nothing, one more in each step, behind its last chunk. Where
that ends with a block, the token goes into the first entry of that block, over the key and value of
the prompt, and attention reads through an entry of the block table that is -1: wrong tokens, or an
illegal memory access on a GPU. If the others wait for blocks in turn, this never ends.

With this patch a prompt gets the blocks of all its chunks with the first, and its next chunk is
part of the next step. If every token of a step can be taken by another request, a prompt is not
split before there is one less.

With prefix caching, which main had before that change, the first chunk also takes the cached blocks
of the whole prompt. Later chunks skip what is in them, as before.

What differs from upstream's commit f8becec65f: there a request whose chunk has to wait is taken out
of the batch for the step.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ADD = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext.add_request"

CHUNKED_PROMPT_BLOCKS = Patch(
    id="chunked-prompt-blocks",
    kind=Kind.CORRECTNESS,
    summary="Give a prompt in chunks all of its KV blocks at once",
    symptom=(
        "with chunked prefill and a full KV cache, wrong tokens, or CUDA error: an illegal memory "
        "access was encountered, when the next chunk of a prompt finds no free block; or the "
        "engine steps for ever"
    ),
    outcome="the next chunk has its blocks, and tokens are those of the prompt in one piece",
    upstream_pr=3840,
    upstream_commit="f8becec65f47982c80c3d397bef7c3fba65f9efc",
    upstream_date="2026-03-14",
    fixed_in="0.17.0",
    releases=">=0.16,<0.17",
    removal="no supported release is older than 0.17.0",
    updated="2026-11-26",
    target=ADD,
    variants=(
        Variant("0.16", HUNKS.of("0.16")),
        Variant("main-c9312e6a54", HUNKS.of("main-c9312e6a54")),
    ),
    told_by=(ADD,),
)
