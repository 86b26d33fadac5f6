"""Return the log probs of a recomputed prompt once (a change of ours; upstream has none).

A prompt that is longer than what is left of ``max_tokens`` is prefilled in several steps, and each
leaves its log probs. A suspension in between that drops the KV cache (the KV cache management mode
RECOMPUTE) makes the request begin its prompt again, and keeps the log probs that are there. So
those of the first chunks are there twice, and as many as there are too many move on from the
prompt's list to that of the generated tokens: each of its values is that of an earlier token. The
same with top-n log probs.

With this patch a request that begins its prompt again begins its lists again.

Not covered: 0.16, which cannot go on after a suspension between two chunks; and the answers in
several parts of requests that had generated tokens before, whose lists are right.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

SUSPEND = "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine.suspend"

RECOMPUTED_PROMPT_LOGPROBS = Patch(
    id="recomputed-prompt-logprobs",
    kind=Kind.CORRECTNESS,
    summary="Return the log probs of a prompt once that a suspension makes begin again",
    symptom=(
        "after a suspension with KVCacheManagementMode.RECOMPUTE between the chunks of a prompt, "
        "generated_log_probs is longer than generated_tokens, and prompt_log_probs has values twice"
    ),
    outcome="as many log probs as tokens, each of its own token",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.17,<0.20",
    removal="upstream begins the lists again, and no supported release is older",
    updated="2026-11-26",
    target=SUSPEND,
    variants=(Variant("0.17", HUNKS.of("0.17")),),
    told_by=(SUSPEND,),
)
