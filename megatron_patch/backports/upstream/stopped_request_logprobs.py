"""Return no log prob for what a request samples after its stop word (upstream #4166 in part).

A stop word is found when its last token has been appended, after the step's bookkeeping. So the
request goes through one more step, which ends it. The token that this step samples is not appended,
but its log prob is, and its most likely tokens are: one more than there are tokens.

With this patch that step leaves neither.

What differs from upstream's commit c1463050b3: that is all of it that is here. The rest makes
speculative decoding work where only the logits of last tokens are materialized.

Not covered: stop words that are taken out of the answer, of which earlier steps have log probs; see
``stop-word-logprobs``.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

PROCESS = (
    "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine.post_process_requests"
)

STOPPED_REQUEST_LOGPROBS = Patch(
    id="stopped-request-logprobs",
    kind=Kind.CORRECTNESS,
    summary="Return no log prob for what a request samples after its stop word",
    symptom=(
        "a request that ends at a stop word has one item more in generated_log_probs, and in "
        "generated_top_n_logprobs, than in generated_tokens"
    ),
    outcome="as many log probs as generated tokens, each of its own token",
    upstream_pr=4166,
    upstream_commit="c1463050b3202bd4fe9d19d00d319a6c6cd2225d",
    upstream_date="2026-04-07",
    fixed_in="0.18.0",
    releases=">=0.16,<0.18",
    removal="no supported release is older than 0.18.0",
    updated="2026-11-26",
    target=(
        "megatron.core.inference.engines.dynamic_engine:"
        "DynamicInferenceEngine._check_stop_words_for_request_post_append"
    ),
    variants=(
        Variant("0.16", HUNKS.of("0.16")),
        Variant("0.17", HUNKS.of("0.17")),
    ),
    told_by=(PROCESS,),
)
