"""Heed the parameters of a request over HTTP, or say what is wrong with them (a change of ours).

What the endpoints do with some parameters of OpenAI's API:

- the chat endpoint does not look at ``stop``, nor does the completions endpoint in 0.16, and the
  request goes on to its last token;
- the completions endpoint takes no ``null`` for a parameter, which is how many clients say that
  they give none: ``float(None)`` is a ``TypeError`` that nobody catches, answered with status 500;
- both answer a parameter of another type, such as a list, with status 500 as well;
- where ``stop`` is heeded, one that is no text, such as a number, goes to the engine, and ends it:
  the tokenizer raises in the middle of adding requests.

With this patch both endpoints heed ``stop``, a parameter that is null has its default, and what has
the wrong type is answered with status 400.

Not covered: nulls in the chat endpoint before 0.19, which are in ``chat-null-parameters``. In 0.16
the engine leaves the stop word at the end of the text.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ENDPOINTS = "megatron.core.inference.text_generation_server.dynamic_text_gen_server.endpoints"

HTTP_PARAMETERS = Patch(
    id="http-parameters",
    kind=Kind.CORRECTNESS,
    summary="Heed stop in chats, and take null for a parameter that is not given",
    symptom=(
        "/v1/chat/completions ignores stop (0.16: /v1/completions, too); 500 Internal Server Error "
        "from /v1/completions, TypeError: float() argument must be a string or a real number, not "
        "'NoneType', when temperature, top_p, top_k or max_tokens is null"
    ),
    outcome=(
        "stop ends the text, null stands for the default, and a parameter of a wrong type is "
        "answered with status 400"
    ),
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16,<0.20",
    removal="upstream heeds and checks them, and no supported release is older",
    updated="2026-11-26",
    target=f"{ENDPOINTS}.chat_completions:chat_completions",
    variants=(
        Variant("0.16", HUNKS.of("0.16")),
        Variant("main-1123fc0ace", HUNKS.of("main-1123fc0ace")),
        Variant("main-0d42bc6a0c", HUNKS.of("main-0d42bc6a0c")),
        Variant("0.17", HUNKS.of("0.17")),
        Variant("main-1addfbd78d", HUNKS.of("main-1addfbd78d")),
        Variant("main-881f489fd4", HUNKS.of("main-881f489fd4")),
    ),
)
