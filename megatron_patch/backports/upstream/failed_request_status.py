"""Answer a request that the engine refused with status 400 (upstream #3776, in part).

The engine refuses a request that it cannot serve, such as one that is too long. In 0.16 the
endpoints do not look at that: they answer with status 200 and no text, as if the model had nothing
to say.

With this patch the answer has status 400, and says why.

What differs from upstream's commit ee00a706e7: an answer of 0.16 is a record, not a dictionary, and
what is refused there is refused for good, so that there is no other status.
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

FAILED_REQUEST_STATUS = Patch(
    id="failed-request-status",
    kind=Kind.CORRECTNESS,
    summary="Answer a request that the engine refused with status 400",
    symptom=(
        "status 200 and an empty text from /v1/completions and /v1/chat/completions for a request "
        "that is too long for the engine"
    ),
    outcome="status 400, and why the engine refused",
    upstream_pr=3776,
    upstream_commit="ee00a706e791d66c32f8bc015ce4e7a92223893f",
    upstream_date="2026-03-18",
    fixed_in="0.17.0",
    releases=">=0.16,<0.17",
    removal="no supported release is older than 0.17.0",
    updated="2026-11-26",
    target=TARGETS[0],
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=TARGETS,
)
