"""Attend within the sliding window in dynamic inference (upstream #5249 in part).

The dynamic engine calls flash-attn itself and passes it no window. So each token attends to all
before it, in each layer, whatever ``window_size`` and ``window_attn_skip_freq`` say: other tokens
than those of the model, and other ones than in training, without any error.

With this patch each layer passes its own window to flash-attn 2, 3 or 4, for prompts, chunks of
prompts and decode steps. A layer without a window makes the calls that it made.

What differs from upstream: multi-latent attention is left as it is, where upstream passes the
window in prefill and raises ``AssertionError`` in decode steps, since FlashMLA has none. Blocks
of the KV cache that are behind the window are kept, as upstream keeps them.

Not covered: the static engine with ``flash_decode``, which ``flash-decode-attention`` is for.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ATTENTION = "megatron.core.transformer.attention:Attention.flash_decode_and_prefill"

SLIDING_WINDOW_ATTENTION = Patch(
    id="sliding-window-attention",
    kind=Kind.CORRECTNESS,
    summary="Attend within the sliding window in dynamic inference",
    symptom=(
        "a model with sliding window attention (window_size, window_attn_skip_freq), such as "
        "gpt-oss or Gemma, generates wrong tokens and log probs with the dynamic engine as soon as "
        "a sequence is longer than the window, without any error"
    ),
    outcome="each layer attends within its window, and the tokens are those of the model",
    upstream_pr=5249,
    upstream_commit="fcbb6ed8fce35b36f145afdfb29dd9d2253bca15",
    upstream_date="2026-06-23",
    fixed_in="0.19.0",
    releases=">=0.14,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-26",
    target=ATTENTION,
    variants=tuple(Variant(name, HUNKS.of(name)) for name in ("0.14", "0.16", "0.18")),
    told_by=(ATTENTION,),
)
