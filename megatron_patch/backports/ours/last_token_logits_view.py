"""Copy the rows of a decode step without an index (a change of ours).

``DynamicInferenceContext.last_token_logits()`` picks the row of each request's last token, of the
hidden states or of the logits. In a decode step each request has one token, and the rows are the
first ones, in order. The releases pick them by an index all the same: up to 0.17 its cumulative sum
is computed on the GPU in each step, and all of them gather.

With this patch such a step copies its first rows. The caller gets a tensor of its own, as ever:
hooks of the output layer, and layers and sampling functions of somebody else, may keep it and write
to it, while what it was copied from may be the static output of a CUDA graph.

Not covered: steps with a prompt in them, steps that are padded to the size of a CUDA graph (the
padding's rows are copies of the first one there), what is captured in a CUDA graph, which is
replayed for other batches, and from 0.17 on speculative decoding in releases whose requests then
have several tokens in a step.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = (
    "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext.last_token_logits"
)

LAST_TOKEN_LOGITS_VIEW = Patch(
    id="last-token-logits-view",
    kind=Kind.PERFORMANCE,
    summary="Copy the rows of a decode step without an index",
    symptom=(
        "each decode step builds an index of its rows on the GPU and gathers by it, although it "
        "wants all of them, in order"
    ),
    outcome="the same rows, from one copy",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.14,<0.20",
    removal="upstream takes the rows of a decode step without an index, in all supported releases",
    updated="2026-11-25",
    target=TARGET,
    variants=(
        Variant("0.14", HUNKS.of("0.14")),
        Variant("0.17", HUNKS.of("0.17")),
        Variant("0.18", HUNKS.of("0.18")),
    ),
)
