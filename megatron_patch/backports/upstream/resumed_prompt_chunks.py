"""Start a prompt anew that was suspended between its chunks (upstream #3840 in part).

A suspension drops the KV cache, and with it the chunks of a prompt that is half-way through. But
the request keeps its count of them, and the next chunk is taken for a continuation of a request
that the context does not have any more: ``AssertionError: Continuation current_id mismatch``, which
ends the engine.

With this patch such a request starts with its first token again.

What differs from upstream's commit f8becec65f: the log probs that its chunks have left are dropped
as well; otherwise there were those of the first chunk twice.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

SUSPEND = "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine.suspend"

RESUMED_PROMPT_CHUNKS = Patch(
    id="resumed-prompt-chunks",
    kind=Kind.CORRECTNESS,
    summary="Start a prompt anew that was suspended between its chunks",
    symptom=(
        "AssertionError: Continuation current_id mismatch, after the engine was suspended and "
        "resumed while a long prompt was half-way through its chunks"
    ),
    outcome="the prompt is prefilled again, and its request goes on",
    upstream_pr=3840,
    upstream_commit="f8becec65f47982c80c3d397bef7c3fba65f9efc",
    upstream_date="2026-03-14",
    fixed_in="0.17.0",
    releases=">=0.16,<0.17",
    removal="no supported release is older than 0.17.0",
    updated="2026-11-26",
    target=SUSPEND,
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(SUSPEND,),
)
