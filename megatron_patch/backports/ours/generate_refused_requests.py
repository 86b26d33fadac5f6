"""Return refused requests from ``generate()`` (a change of ours; upstream has none).

A request that ``add_request()`` refuses is returned by the next step. ``generate()`` makes steps
as long as there are requests to serve, and there are none where all are refused: it returns an
empty list, and the records come with what the next call returns. A caller who pairs prompts with
results pairs wrong ones.

With this patch ``generate()`` goes on until it has them.

Not covered: 0.15, where ``refused-request-reply`` does it. 0.14 raises.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

GENERATE = "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine.generate"

GENERATE_REFUSED_REQUESTS = Patch(
    id="generate-refused-requests",
    kind=Kind.CORRECTNESS,
    summary="Return refused requests from the generate() that they were given to",
    symptom=(
        "engine.generate() returns [] for a prompt that is too long, and the next call returns "
        "one record too many"
    ),
    outcome="the same call returns a record with status FAILED for it",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16,<0.20",
    removal="upstream returns them, and no supported release is older",
    updated="2026-11-26",
    target=GENERATE,
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(GENERATE,),
)
