"""Look for cached Mamba states within the chunk of a prompt (upstream #4758).

A hybrid model with prefix caching goes on from the farthest cached Mamba state of a prompt. The
engine looks for it in the whole prompt. With chunked prefill the first chunk is shorter, and so are
the cached blocks that it shares. Then the context finds a Mamba state behind the last one of them:
``AssertionError: Mamba match (6) > KV match (3)``, which ends the engine and all its requests.

With this patch the context takes the farthest cached state that the chunk reaches.

What differs from upstream: the engine still looks in the whole prompt, and what it found is only
left where the chunk does not reach it. Upstream looks in the context alone.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = (
    "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext._compute_prefix_match"
)

MAMBA_CHUNK_MATCH = Patch(
    id="mamba-chunk-match",
    kind=Kind.CORRECTNESS,
    summary="Look for cached Mamba states within the chunk of a prompt",
    symptom=(
        "AssertionError: Mamba match (6) > KV match (3) ends the engine of a hybrid model with "
        "prefix caching and chunked prefill, when a prompt that is cached comes again and its "
        "first chunk is shorter"
    ),
    outcome="the chunk goes on from the farthest cached state that it reaches",
    upstream_pr=4758,
    upstream_commit="57c484e02d93148b2a9e708a2a84f70f91fe9e34",
    upstream_date="2026-06-22",
    fixed_in="0.19.0",
    releases=">=0.17,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-26",
    target=TARGET,
    variants=(Variant("0.17", HUNKS.of("0.17")),),
    told_by=(TARGET,),
)
