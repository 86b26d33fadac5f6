"""Attend as the model does in decode steps with ``flash_decode`` (a change of ours).

With ``flash_decode`` in the configuration, the decode steps of the static engine call flash-attn
themselves. They pass it neither the window of the layer nor the ``softmax_scale`` of the
configuration, and, before 0.19, do not apply attention sinks: the first token is that of the
model, and those after it are other ones, without any error.

With this patch they pass the window and the scale of the layer, and multiply what flash-attn gives
by the share that is not the sink's, ``sigmoid(lse - sink)``, in float32. A layer without any of
them makes the call that it made.

What differs from upstream: it has the sinks alone (#5249), from 0.19 on.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = "megatron.core.transformer.attention:Attention.flash_decode"

FLASH_DECODE_ATTENTION = Patch(
    id="flash-decode-attention",
    kind=Kind.CORRECTNESS,
    summary="Attend within window, scale and sinks of the layer with flash_decode",
    symptom=(
        "with flash_decode the static engine generates wrong tokens for a model with sliding "
        "window attention (window_size), a softmax_scale of its own or, before 0.19, attention "
        "sinks (softmax_type), such as gpt-oss or Gemma, without any error"
    ),
    outcome="decode steps attend as the model does, and the tokens are those of the model",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.14,<0.20",
    removal="upstream passes scale and window with flash_decode, and no supported release is older",
    updated="2026-11-26",
    target=TARGET,
    variants=tuple(Variant(name, HUNKS.of(name)) for name in ("0.14", "0.19")),
)
