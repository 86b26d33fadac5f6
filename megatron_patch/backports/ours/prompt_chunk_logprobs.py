"""Score each token of a prompt in chunks, and nothing that a chunk samples (a change of ours).

A prompt that is longer than what is left of ``max_tokens`` is prefilled in several steps. All but
the last of them sample a token that means nothing, and the engine does not take it for generated.
But its log prob is taken for that of the prompt's token in its place: where the log probs of a
prompt are wanted, that of the first token of each chunk but the first is one of another token. The
choice is not far off where the model is sure, so that it is hard to see. And without those of the
prompt, since 0.17, each of these steps leaves its ``top_n_logprobs`` among those of the generated
tokens.

With this patch the log prob of a chunk's last token is that of the token that follows it in the
prompt, also in speculative decoding and with asynchronous scheduling; and such steps leave no top-n
log probs where none of the prompt are asked for.

Not covered: 0.16, whose top-n log probs are mended by ``chunked-prefill-logprobs``.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

INFERENCE = "megatron.core.inference"

ADD_REQUEST = f"{INFERENCE}.contexts.dynamic_context:DynamicInferenceContext.add_request"

PROMPT_CHUNK_LOGPROBS = Patch(
    id="prompt-chunk-logprobs",
    kind=Kind.CORRECTNESS,
    summary="Score the tokens of a prompt in chunks, not what the chunks sample",
    symptom=(
        "with chunked prefill, prompt_log_probs has a wrong value where a chunk begins, such as at "
        "max_tokens; since 0.17 generated_top_n_logprobs is longer than generated_tokens after a "
        "long prompt with skip_prompt_log_probs"
    ),
    outcome="each log prob of a prompt is that of its own token, as without chunks",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.15,<0.20",
    removal="upstream scores what follows in the prompt, and no supported release is older",
    updated="2026-11-26",
    target=f"{INFERENCE}.engines.dynamic_engine:DynamicInferenceEngine.schedule_chunked_prefill",
    # The bookkeeping of 0.17 is on the device, and its edits fit there only.
    variants=tuple(
        Variant(name, HUNKS.of(name))
        for name in ("0.19", "0.18", "0.17", "main-c9312e6a54", "0.16", "0.15")
    ),
    told_by=(ADD_REQUEST,),
)
