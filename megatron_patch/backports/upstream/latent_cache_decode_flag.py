"""Run models with multi-latent attention in the dynamic engine (upstream #4902).

Since 0.16 the attention of the dynamic engine is told whether a step decodes only. Multi-latent
attention (that of DeepSeek's models) calls the same method, and does not tell it: TypeError in the
first step, with whichever request.

With this patch it does. 0.14 and 0.15 looked at the lengths instead.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TRANSFORMER = "megatron.core.transformer"

FORWARD = f"{TRANSFORMER}.multi_latent_attention:MultiLatentAttention.forward"

LATENT_CACHE_DECODE_FLAG = Patch(
    id="latent-cache-decode-flag",
    kind=Kind.CORRECTNESS,
    summary="Run models with multi-latent attention in the dynamic engine",
    symptom=(
        "TypeError: Attention.flash_decode_and_prefill() missing 1 required positional argument: "
        "'is_decode_only', in the first step of the dynamic engine with a model with multi-latent "
        "attention (MLA, as in DeepSeek's) and cache_mla_latents"
    ),
    outcome="the engine serves such models",
    upstream_pr=4902,
    upstream_commit="0081c849f9e7f32a99fe2e37efa0b14017fc0c51",
    upstream_date="2026-07-30",
    fixed_in="0.20.0",
    releases=">=0.16,<0.20",
    removal="no supported release is older than 0.20.0",
    updated="2026-11-26",
    target=FORWARD,
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(FORWARD,),
)
