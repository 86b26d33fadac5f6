"""Merge requests of which only some parts have log probs (a change of ours; upstream has none).

A request that was evicted, or suspended and recomputed, has a record of several parts, and
``DynamicInferenceRequestRecord.merge()`` makes one request of them. It takes for granted that all
parts have lists of log probs where the first one has. But a part that is cut off before its first
token has none. If it is the first, ``merge()`` gives no log probs at all; if it is another one, it
raises ``TypeError``, and the server has no answer for its client. Before 0.18 the same holds of
``tpot``.

With this patch parts without tokens count for nothing: what the others have is put together, and
what a request has for its prompt, and its time to the first token, are those of the first part that
had the time for them.

Not covered: a part that was cut off between the chunks of its prompt, and has log probs of some of
it; MoE routing, which 0.17 puts together of all parts, although each has that of the tokens before
it, too.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

MERGE = "megatron.core.inference.inference_request:DynamicInferenceRequestRecord.merge"

MERGED_LOGPROBS = Patch(
    id="merged-logprobs",
    kind=Kind.CORRECTNESS,
    summary="Merge requests of which only some parts have log probs",
    symptom=(
        "TypeError: 'NoneType' object is not iterable from DynamicInferenceRequestRecord.merge(), "
        "or no log probs at all, for a request that was evicted or suspended before it had "
        "generated a token"
    ),
    outcome="a merged request has the log probs of all its parts",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16,<0.20",
    removal="upstream merges such parts, and no supported release is older",
    updated="2026-11-26",
    target=MERGE,
    variants=(
        Variant("0.16", HUNKS.of("0.16")),
        Variant("0.17", HUNKS.of("0.17")),
    ),
    told_by=(MERGE,),
)
