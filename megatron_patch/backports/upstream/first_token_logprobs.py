"""File the first generated token's log prob with those of the others (upstream #2262 in part).

The step that prefills a prompt returns a log prob for each of its tokens but the first, and one for
the token that it has generated. All of them are put into ``prompt_log_probs``: it has as many as
the prompt has tokens, and ``generated_log_probs`` has one less than tokens were generated. Who
pairs tokens and log probs, such as in reinforcement learning, pairs wrong ones. With a prompt of
one token it goes where it belongs.

With this patch it always does: both lists have what they have in later releases.

What differs from upstream's commit 898d633bb8: that one counts what is in the lists to tell where
a log prob belongs. The last one of a step is that of the generated token, however many there are.

Not covered: top-n log probs, which came with that commit.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

PROCESS = (
    "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine.post_process_requests"
)

FIRST_TOKEN_LOGPROBS = Patch(
    id="first-token-logprobs",
    kind=Kind.CORRECTNESS,
    summary="File the first generated token's log prob with those of the others",
    symptom=(
        "generated_log_probs is one shorter than generated_tokens, and prompt_log_probs as long as "
        "prompt_tokens: its last value is the log prob of the first generated token"
    ),
    outcome="as many log probs as generated tokens, and one less than tokens of the prompt",
    upstream_pr=2262,
    upstream_commit="898d633bb8202046c8f344f18a3bc010114ae35a",
    upstream_date="2025-11-25",
    fixed_in="0.16.0",
    releases=">=0.14,<0.16",
    removal="no supported release is older than 0.16.0",
    updated="2026-11-26",
    target=PROCESS,
    variants=(Variant("0.15", HUNKS.of("0.15")), Variant("0.14", HUNKS.of("0.14"))),
    told_by=(PROCESS,),
)
