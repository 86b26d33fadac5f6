"""Answer a refused request at once (upstream #3776 in part).

``add_request()`` refuses a request that is too long: its status is FAILED, and an event says why.
But whoever waits for it waits on:

- 0.15 never completes its future, and keeps it.
- 0.16 completes it in the next step, which does not come before another request does. Over the
  coordinator the client hangs as long.

With this patch the future is done, and the reply on its way, when ``add_request()`` returns. Its
record still comes with the next step's finished requests, and ``generate()`` of 0.15 makes that
step. The coordinator of 0.15, which completes requests itself and tells no status, sends a reply
without tokens. Between the two (November 2025 on main, and on dev), the engine sends requests that
have ended, and so the refused one.

What differs from upstream's commit ee00a706e7: no warning, and nothing of the HTTP endpoints.

Not covered: 0.14, whose ``add_request()`` raises.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ADD = "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine._add_request"

REFUSED_REQUEST_REPLY = Patch(
    id="refused-request-reply",
    kind=Kind.CORRECTNESS,
    summary="Answer a refused request at once",
    symptom=(
        "a request that is too long is never answered: its future is never done (0.15), or not "
        "before another request comes (0.16), and the client of the coordinator hangs"
    ),
    outcome="when add_request() returns, its future has status FAILED, and the reply is sent",
    upstream_pr=3776,
    upstream_commit="ee00a706e791d66c32f8bc015ce4e7a92223893f",
    upstream_date="2026-03-18",
    fixed_in="0.17.0",
    releases=">=0.15,<0.17",
    removal="no supported release is older than 0.17.0",
    updated="2026-11-26",
    target=ADD,
    variants=(
        Variant("0.15", HUNKS.of("0.15")),
        Variant("main-afa73619c5", HUNKS.of("main-afa73619c5")),
        Variant("0.16", HUNKS.of("0.16")),
    ),
    told_by=(ADD,),
)
