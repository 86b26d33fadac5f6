"""Apply YaRN's concentration factor in dynamic inference (upstream #5249 in part).

YaRN multiplies rotated queries and keys by a concentration factor (``mscale``), 1.35 for a scaling
factor of 32. The model does so, the dynamic engine does not: its attention is flatter, and its
tokens are other ones than those of the model, without any error.

With this patch the engine has the factor of the model. Without YaRN it is 1, as it was.

What differs from upstream: the factor is looked up where it is used, as the rest of the forward
pass does, and not kept in the layer.

0.14 has no YaRN but that of multi-latent attention, which passes the factor.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ATTENTION = "megatron.core.transformer.attention:Attention"

KEYS = f"{ATTENTION}._adjust_key_value_for_inference"

QUERIES = f"{ATTENTION}.forward"

YARN_CONCENTRATION_FACTOR = Patch(
    id="yarn-concentration-factor",
    kind=Kind.CORRECTNESS,
    summary="Apply YaRN's concentration factor in dynamic inference",
    symptom=(
        "a model with position_embedding_type yarn, such as gpt-oss, generates wrong tokens and "
        "log probs with the dynamic engine, without any error: attention is flatter than in "
        "training, because mscale, the concentration factor, is not applied"
    ),
    outcome="queries and keys have the factor, and the tokens are those of the model",
    upstream_pr=5249,
    upstream_commit="fcbb6ed8fce35b36f145afdfb29dd9d2253bca15",
    upstream_date="2026-06-23",
    fixed_in="0.19.0",
    releases=">=0.15,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-26",
    target=KEYS,
    variants=(Variant("0.15", HUNKS.of("0.15")),),
    told_by=(KEYS, QUERIES),
)
