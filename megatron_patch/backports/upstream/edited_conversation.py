"""Go on with a conversation that has become shorter, or whose turn is empty (upstream #5313).

The chat endpoint puts the tokens of the turn before in the place of its text, and for that looks
for the end of that turn among the tokens of the present conversation. It takes them for at least as
many: where a chat template drops the reasoning of earlier turns there can be fewer. An empty turn
has no last token. Both are an ``IndexError``, which is answered with status 500.

With this patch a turn may be empty, and its end is counted: it is the end of as many messages as
there were.

What differs from upstream's commit 002255075c: that looks for the last end among as many tokens as
there were, or as there are. Where reasoning is dropped this can be the end of a later message,
which is then missing in the prompt, without an error.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ENDPOINTS = "megatron.core.inference.text_generation_server.dynamic_text_gen_server.endpoints"

TARGET = f"{ENDPOINTS}.chat_completions:_replace_prefix_tokens"

EDITED_CONVERSATION = Patch(
    id="edited-conversation",
    kind=Kind.CORRECTNESS,
    summary="Go on with a conversation that became shorter, or whose last turn is empty",
    symptom=(
        "Error processing 'messages': list index out of range, with status 500, from "
        "/v1/chat/completions when an earlier turn was shortened by the client or, as reasoning, "
        "by the chat template, or when it is empty"
    ),
    outcome="the conversation goes on",
    upstream_pr=5313,
    upstream_commit="002255075c3728fded9a2e435677840b08560d55",
    upstream_date="2026-06-12",
    fixed_in="0.19.0",
    releases=">=0.17,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-26",
    target=TARGET,
    variants=(Variant("0.17", HUNKS.of("0.17")),),
    told_by=(TARGET,),
)
