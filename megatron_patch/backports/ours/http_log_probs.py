"""Answer over HTTP with the log probs of the tokens (a change of ours; upstream has one open).

The chat endpoint looks for the log probs under a name that no answer of the dynamic engine has: so
``logprobs.content`` is empty, or in 0.16 ``logprobs`` is null, however many were asked for and
computed. The completions endpoint puts a None in front of those of the generated tokens, as if the
first of them were the first token of a prompt, which has none: with ``echo`` off each token has the
log prob of the token before it, there is one value too many, and the most likely tokens are those
of the position before, too.

With this patch the chat endpoint has an entry for each generated token, and the completions
endpoint as many values as tokens, each its own. In 0.16 the chat endpoint also asked for those of
the prompt, which it does not return: an engine that keeps the last logits alone has none, and
refused by an assertion that ended it. It asks for them no longer.

Nothing changes with ``echo`` on, where the None belongs to the prompt's first token.

Not covered: more log probs than tokens behind a stop word.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ENDPOINTS = "megatron.core.inference.text_generation_server.dynamic_text_gen_server.endpoints"

HTTP_LOG_PROBS = Patch(
    id="http-log-probs",
    kind=Kind.CORRECTNESS,
    summary="Return over HTTP the log probs of the tokens, each its own",
    symptom=(
        "/v1/chat/completions answers logprobs=true with an empty logprobs.content (0.16: null), "
        "and /v1/completions gives each token the log prob of the one before it, with a leading "
        "null and one value more than tokens"
    ),
    outcome="as many log probs as generated tokens, each its own, and their most likely tokens",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16,<0.20",
    removal="upstream returns them, and no supported release is older",
    updated="2026-11-26",
    target=f"{ENDPOINTS}.chat_completions:chat_completions",
    variants=(
        Variant("0.16", HUNKS.of("0.16")),
        Variant("0.17", HUNKS.of("0.17")),
    ),
)
