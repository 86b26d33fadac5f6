"""Skip only tokens that the Mamba state has seen (a change of ours).

With prefix caching a hybrid model skips the tokens of a prompt that are cached. Attention has their
keys and values; Mamba layers need the state after them. Two ways lead to tokens that are skipped
and are not in the state, so that the answer is not that of the model, without any error:

- A later chunk of a prompt skips blocks that attention has cached. Its state is that of the chunk
  before, and never sees them. (0.17 to 0.19)
- Where all but one token is cached, 0.18 and 0.19 skip a block less, so that two tokens are left.
  There mostly is no Mamba state at the end of what is skipped then, and the request starts with an
  empty one.

With this patch the context skips tokens of a first chunk alone, up to a block whose Mamba state is
cached. The other tokens are computed.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = (
    "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext._compute_prefix_match"
)

MAMBA_SKIPPED_TOKENS = Patch(
    id="mamba-skipped-tokens",
    kind=Kind.CORRECTNESS,
    summary="Skip only tokens that the Mamba state has seen",
    symptom=(
        "a hybrid model with prefix caching answers otherwise when its prompt is cached but for "
        "one token, or comes in chunks of which the second is cached, without any error"
    ),
    outcome="the Mamba state has seen each token of the prompt",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.17,<0.20",
    removal="upstream skips no token without its Mamba state, and no supported release is older",
    updated="2026-11-26",
    target=TARGET,
    variants=(
        Variant("main-c9312e6a54", HUNKS.of("main-c9312e6a54")),
        Variant("0.17", HUNKS.of("0.17")),
    ),
)
