"""Answer each request over HTTP with one choice, numbered (upstream #3034 and #3395, in part).

An engine that runs out of memory evicts a request and starts it anew with what it has. In 0.16 the
answer then has several parts, and the endpoints make a choice of each of them: ten choices for six
prompts, with texts in pieces, and, from the first evicted one on, under the numbers and behind the
prompts of others. With ``n`` above 1 the chat endpoint gives each choice the number 0, and it says
of each that it ended for its length.

With this patch the parts are joined before, and the text is that of all tokens. Choices of a chat
are numbered, and one that ended before its last token says ``stop``.

What differs from upstream, where answers are joined before they are sent: only the endpoints do.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ENDPOINTS = "megatron.core.inference.text_generation_server.dynamic_text_gen_server.endpoints"

TARGETS = (
    f"{ENDPOINTS}.chat_completions:chat_completions",
    f"{ENDPOINTS}.completions:completions",
)

ONE_CHOICE_PER_ANSWER = Patch(
    id="one-choice-per-answer",
    kind=Kind.CORRECTNESS,
    summary="Answer an evicted request with one choice, and number the choices of a chat",
    symptom=(
        "more choices than prompts from /v1/completions, with the text of a request that was "
        "evicted in pieces, echoed behind the prompts of others; index 0 for each of the n choices "
        "of /v1/chat/completions"
    ),
    outcome="one choice for each prompt, and numbers from 0 to n - 1",
    upstream_pr=3034,
    upstream_commit="faced512869f130ae4c5d1b4779c3f7fd52b74ed",
    upstream_date="2026-02-11",
    fixed_in="0.17.0",
    releases=">=0.16,<0.17",
    removal="no supported release is older than 0.17.0",
    updated="2026-11-26",
    target=TARGETS[0],
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=TARGETS,
)
