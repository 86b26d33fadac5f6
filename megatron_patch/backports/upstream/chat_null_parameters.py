"""Take a sampling parameter that is null for one that is not given, in chats (upstream #5300).

OpenAI's parameters may be null, and some clients send all of them. The chat endpoint converts what
it finds, and ``float(None)`` is a ``TypeError`` that nobody catches.

With this patch a parameter that is null has its default.

What differs from upstream's commit 1f537e89bc: all nulls are left out at one place, in the place of
a look-up that leaves out its own. That is also ``max_tokens`` in 0.16, which is a number there.

Not covered: the completions endpoint, which is in ``http-parameters``.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ENDPOINTS = "megatron.core.inference.text_generation_server.dynamic_text_gen_server.endpoints"

TARGET = f"{ENDPOINTS}.chat_completions:chat_completions"

CHAT_NULL_PARAMETERS = Patch(
    id="chat-null-parameters",
    kind=Kind.CORRECTNESS,
    summary="Take sampling parameters of a chat that are null for ones that are not given",
    symptom=(
        "500 Internal Server Error from /v1/chat/completions, TypeError: float() argument must be "
        "a string or a real number, not 'NoneType', when temperature, top_p, top_k, n or "
        "top_logprobs is null"
    ),
    outcome="the parameter has its default",
    upstream_pr=5300,
    upstream_commit="1f537e89bcd0d10e000c86a8bf5f14145e5b2354",
    upstream_date="2026-06-12",
    fixed_in="0.19.0",
    releases=">=0.16,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-26",
    target=TARGET,
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(TARGET,),
)
