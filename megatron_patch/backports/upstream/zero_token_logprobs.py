"""Answer requests for no tokens, with the log probs of their prompt (upstream #5167).

A request with ``num_tokens_to_generate=0`` and ``return_log_probs`` is how evaluation harnesses
score text. Since 0.17 the engine drops what a step samples beyond the number of tokens asked for,
and then takes the first of the tokens that are left, and the time per token, where there is none:
``IndexError`` out of the step, which ends all other requests, too. 0.18 drops log probs along with
the tokens, but from the wrong end: those of the prompt come first.

With this patch such a request ends after its prefill with no token, no log prob of a generated one,
and all those of its prompt.

What differs from upstream's commit 9d33299193: with ``skip_prompt_log_probs`` such a request gets
no log prob at all. Upstream gives it that of the prompt's last token, as that of a generated one,
or raises ``IndexError`` where only the logits of last tokens are materialized. And in 0.17 log
probs are dropped along with the tokens, as in 0.18: in speculative decoding there were more of them
than tokens when the last step accepted more than was asked for.

Not covered: 0.16 and earlier, which generate one token where none is asked for. And the values of
prompts that are cached or in chunks, which ``cached-prompt-logprobs`` and ``prompt-chunk-logprobs``
mend.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

INFERENCE = "megatron.core.inference"

PROCESS = f"{INFERENCE}.engines.dynamic_engine:DynamicInferenceEngine.post_process_requests"

ZERO_TOKEN_LOGPROBS = Patch(
    id="zero-token-logprobs",
    kind=Kind.CORRECTNESS,
    summary="Return the prompt's log probs to a request for no tokens, instead of raising",
    symptom=(
        "IndexError: list index out of range from post_process_requests(), which ends the engine, "
        "when a request has num_tokens_to_generate=0, such as those of evaluation harnesses that "
        "score text"
    ),
    outcome=(
        "the request ends after its prefill with the log probs of its prompt, and other "
        "requests go on"
    ),
    upstream_pr=5167,
    upstream_commit="9d332991936d023ffdad1b6713919def86973e19",
    upstream_date="2026-06-05",
    fixed_in="0.19.0",
    releases=">=0.17,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-24",
    target=f"{INFERENCE}.contexts.dynamic_context:DynamicInferenceContext.calculate_log_probs",
    variants=(
        Variant("0.17", HUNKS.of("0.17")),
        Variant("main-980211ae63", HUNKS.of("main-980211ae63")),
        Variant("0.18", HUNKS.of("0.18")),
    ),
    told_by=(PROCESS,),
)
