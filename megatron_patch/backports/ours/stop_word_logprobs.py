"""Take a stop word's log probs out of the answer with its tokens (a change of ours).

Since 0.17 a stop word's tokens are taken out of the answer, unless the request has
``detokenize_stop_sequence``. Log probs are taken out, too, but only of those that the last step has
brought. A word of several tokens has brought its first ones in steps before: their log probs stay,
and there are more log probs than tokens. And if the word is the first that a request generates,
nothing is left of the step, and the last of nothing is looked for where the prompt's log probs are
not asked for: ``IndexError`` out of the step, which ends all other requests, too. Where all logits
are materialized, that of the prompt's last token is filed as that of a generated one instead.
0.19 does the same for a request for no tokens.

With this patch the log probs of all tokens that are taken out go with them, whichever step has
brought them, and so do the most likely tokens.

Not covered: the log prob of the step that ends the request, on 0.17; see
``stopped-request-logprobs``.
"""

from __future__ import annotations

from ... import hunks
from ...edits import Requires
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ENGINE = "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine"

PROCESS = f"{ENGINE}.post_process_requests"

FIND = f"{ENGINE}._check_stop_words_for_request_post_append"

STOP_WORD_LOGPROBS = Patch(
    id="stop-word-logprobs",
    kind=Kind.CORRECTNESS,
    summary="Take a stop word's log probs out of the answer with its tokens",
    symptom=(
        "IndexError: list index out of range from post_process_requests(), which ends the engine, "
        "when a stop word is the first thing that a request with return_log_probs and "
        "skip_prompt_log_probs generates; after a stop word of several tokens, "
        "generated_log_probs and generated_top_n_logprobs are longer than generated_tokens"
    ),
    outcome="the request ends there, with as many log probs as tokens, and other requests go on",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.17,<0.20",
    removal="upstream takes them out, and no supported release is older",
    updated="2026-11-26",
    target=FIND,
    variants=(
        Variant(
            "0.17",
            (
                *HUNKS.of("0.17"),
                Requires(FIND, "it takes the tokens out, and returns how many they are"),
            ),
        ),
    ),
    told_by=(FIND,),
)
