"""Let a request with ``num_tokens_total`` survive a suspension (upstream #3029 in part).

When a request is added, ``num_tokens_to_generate`` is computed from ``num_tokens_total``, and both
are kept. A suspended engine adds its requests again when it is resumed, and asserts that not both
are given: AssertionError out of ``resume()``, and all requests are lost.

With this patch ``num_tokens_total`` is dropped when it has been used, as upstream has it.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ADD = "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine._add_request"

RESUMED_TOTAL_TOKENS = Patch(
    id="resumed-total-tokens",
    kind=Kind.CORRECTNESS,
    summary="Let a request with num_tokens_total survive a suspension",
    symptom=(
        "AssertionError without a message from _add_request() when the engine is resumed, if a "
        "request has num_tokens_total in its sampling parameters"
    ),
    outcome="the engine is resumed, and the request ends at its number of tokens",
    upstream_pr=3029,
    upstream_commit="1106df46191f276c21d6995150727b536182d2e2",
    upstream_date="2026-02-18",
    fixed_in="0.17.0",
    releases=">=0.16,<0.17",
    removal="no supported release is older than 0.17.0",
    updated="2026-11-26",
    target=ADD,
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(ADD,),
)
