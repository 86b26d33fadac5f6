"""Apply attention sinks in dynamic inference (upstream #5249 in part).

With a ``softmax_type`` of ``off-by-one`` or ``learnable`` the softmax has one score more in its
denominator, 0 or a parameter of each head, so that a head can attend to nothing. The dynamic engine
calls flash-attn itself, which knows of no sink: its attention gives too much, and its tokens are
other ones than those of the model, without any error.

With this patch flash-attn also returns the log-sum-exp of the scores, and what it gives is
multiplied by the share that is not the sink's, ``sigmoid(lse - sink)``, in float32. That is for
flash-attn 2, 3 and 4, prompts and decode steps. Without a sink the calls are those that were made.

What differs from upstream: multi-latent attention is left as it is; flash-attn 4 is asked for the
log-sum-exp, which it does not return otherwise.

Not covered: the static engine with ``flash_decode``, which ``flash-decode-attention`` is for.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ATTENTION = "megatron.core.transformer.attention:Attention.flash_decode_and_prefill"

#: Makes the sink, on source that has sinks.
SINK = "megatron.core.transformer.dot_product_attention:DotProductAttention.__init__"

ATTENTION_SINKS = Patch(
    id="attention-sinks",
    kind=Kind.CORRECTNESS,
    summary="Apply attention sinks in dynamic inference",
    symptom=(
        "a model with attention sinks (softmax_type off-by-one or learnable), such as gpt-oss, "
        "generates wrong tokens and log probs with the dynamic engine, without any error"
    ),
    outcome="the sinks are in the denominator, and the tokens are those of the model",
    upstream_pr=5249,
    upstream_commit="fcbb6ed8fce35b36f145afdfb29dd9d2253bca15",
    upstream_date="2026-06-23",
    fixed_in="0.19.0",
    releases=">=0.15,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-26",
    target=ATTENTION,
    variants=tuple(Variant(name, HUNKS.of(name)) for name in ("0.15", "0.16", "0.18")),
    told_by=(ATTENTION, SINK),
)
