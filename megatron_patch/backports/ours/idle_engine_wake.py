"""Wake ``run_engine()`` for a request that comes while it is idle (a change of ours).

``run_engine()`` waits on a condition until there are requests. Since 0.15 ``add_request()`` only
puts a request into the queue; the condition is notified when a step takes it from there, and the
idle engine makes no step. So the first request after ``run_engine()`` has become idle is never
served, and none after it.

With this patch ``add_request()`` has the event loop notify the condition. With the coordinator,
and in ``generate()``, nobody waits on it.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

ADD = "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine._add_request"

IDLE_ENGINE_WAKE = Patch(
    id="idle-engine-wake",
    kind=Kind.CORRECTNESS,
    summary="Wake run_engine() for a request that comes while it is idle",
    symptom=(
        "run_engine() without a coordinator never serves a request that is added while the engine "
        "is idle: await of its future hangs"
    ),
    outcome="the engine wakes and serves it",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.15,<0.20",
    removal="upstream notifies the condition, and no supported release is older",
    updated="2026-11-26",
    target=ADD,
    variants=(Variant("0.15", HUNKS.of("0.15")),),
    told_by=(ADD,),
)
