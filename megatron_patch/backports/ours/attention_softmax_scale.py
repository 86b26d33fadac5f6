"""Scale attention's scores as the model does in dynamic inference (a change of ours).

A model may scale the scores by another number than one over the square root of a head's dimension:
``softmax_scale`` of its configuration, which ``use_mup`` sets, too. The dynamic engine calls
flash-attn itself, and heeds only the scale of multi-latent attention. For all other attention it
takes the usual one: its tokens are other ones than those of the model, without any error.

With this patch it passes the scale of the configuration, if there is one. Otherwise the calls are
those that were made.

Not covered: the static engine with ``flash_decode``, which ``flash-decode-attention`` is for.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ATTENTION = "megatron.core.transformer.attention:Attention.flash_decode_and_prefill"

ATTENTION_SOFTMAX_SCALE = Patch(
    id="attention-softmax-scale",
    kind=Kind.CORRECTNESS,
    summary="Scale attention's scores by the configuration's softmax_scale in dynamic inference",
    symptom=(
        "a model with a softmax_scale of its own, or with use_mup, generates wrong tokens and log "
        "probs with the dynamic engine, without any error"
    ),
    outcome="the scores are scaled as in training, and the tokens are those of the model",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.14,<0.20",
    removal="upstream passes the configuration's scale, and no supported release is older",
    updated="2026-11-26",
    target=ATTENTION,
    variants=tuple(Variant(name, HUNKS.of(name)) for name in ("0.14", "0.18", "0.19")),
    told_by=(ATTENTION,),
)
