"""Leave refused requests out of a suspension (a change of ours; upstream has none).

A request that ``_add_request()`` refuses stays in ``requests`` until the next step returns it. A
suspension that comes first takes it for an active request: ``suspend()`` makes a new part of its
record, and ``resume()`` adds it again, where it is refused again. So it is to be returned twice:
its future is done already, or it is gone the second time, and either ends the engine.

With this patch ``suspend()`` leaves it where it is. The next step returns it, suspended in between
or not.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine.suspend"

SUSPENDED_REFUSED_REQUESTS = Patch(
    id="suspended-refused-requests",
    kind=Kind.CORRECTNESS,
    summary="Leave refused requests out of a suspension",
    symptom=(
        "asyncio.exceptions.InvalidStateError or KeyError ends the engine when it is suspended "
        "after it has refused a request, for its length or its sampling parameters, and before "
        "the next step"
    ),
    outcome="the refused request is returned once, and the others go on",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16,<0.20",
    removal="upstream leaves refused requests out of suspend(), and no supported release is older",
    updated="2026-11-26",
    target=TARGET,
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(TARGET,),
)
