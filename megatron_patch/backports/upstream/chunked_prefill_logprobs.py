"""Return log probs for generated tokens alone after a prompt in chunks (upstream #3777).

A prompt that is longer than what is left of ``max_tokens`` is prefilled in several steps. All but
the last of them sample a token that means nothing, and the engine does not take it for generated.
But with ``skip_prompt_log_probs`` it takes its log prob for that of a generated token, unless only
the logits of last tokens are materialized: there is one more for each chunk, in front of those that
mean something. Code that pairs tokens with log probs, for example in reinforcement learning, pairs
wrong ones.

With this patch these steps leave no log prob where none of the prompt are asked for.

What differs from upstream's commit 46227e0a96: the same holds for ``top_n_logprobs``, which have
the same defect in any case, and keep it upstream.

Not covered: without ``skip_prompt_log_probs``, the log prob of the first token of each chunk but
the first, which ``prompt-chunk-logprobs`` mends; and 0.15, which has no ``skip_prompt_log_probs``.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

INFERENCE = "megatron.core.inference"

PROCESS = f"{INFERENCE}.engines.dynamic_engine:DynamicInferenceEngine.post_process_requests"

CHUNKED_PREFILL_LOGPROBS = Patch(
    id="chunked-prefill-logprobs",
    kind=Kind.CORRECTNESS,
    summary="Return no log probs for what the chunks of a prompt sample",
    symptom=(
        "with chunked prefill and skip_prompt_log_probs, generated_log_probs is longer than "
        "generated_tokens after a long prompt, and its values belong to other tokens"
    ),
    outcome="as many log probs as generated tokens, each of its own token",
    upstream_pr=3777,
    upstream_commit="46227e0a967aed733f38eb5ebe5d413b39a5b43a",
    upstream_date="2026-03-12",
    fixed_in="0.17.0",
    releases=">=0.16,<0.17",
    removal="no supported release is older than 0.17.0",
    updated="2026-11-24",
    target=f"{INFERENCE}.contexts.dynamic_context:DynamicInferenceContext.calculate_log_probs",
    variants=(
        Variant("0.16", HUNKS.of("0.16")),
        Variant("main-43db8c1cf9", HUNKS.of("main-43db8c1cf9")),
    ),
    told_by=(PROCESS,),
)
