"""Let requests end at their own termination id after a suspension (upstream #2929 in part).

The context keeps the termination id of each request in a tensor on the GPU. A suspension that frees
the context's memory (0.16: ``unified_memory_level`` 0, the default; 0.17: the KV cache management
mode RECOMPUTE) drops that tensor, and resuming makes a new one. The controller took the old one
when it was made, and goes on reading it: after the suspension requests, resumed and new ones alike,
end at the termination id of a request that is long gone, or at whatever token a place was filled
with that nobody used, and go on beyond their own.

With this patch the controller takes the context's current tensor in each step, as it already does
with the parameters that it copies to the CPU.

What differs from upstream's commit 0d98cb838f: there the controller keeps none of these tensors,
and the context gathers the parameters of active requests in each step.

Not covered: a request whose prompt is half-way through its chunks when 0.16 is suspended.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

INITIALIZE_STEP = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller:"
    "TextGenerationController._dynamic_step_context_init"
)

RESUMED_REQUEST_METADATA = Patch(
    id="resumed-request-metadata",
    kind=Kind.CORRECTNESS,
    summary="Let requests end at their own termination id after a suspension",
    symptom="after a suspension requests end too early, or go on beyond their termination id",
    outcome="each request ends at its own termination id",
    upstream_pr=2929,
    upstream_commit="0d98cb838f269a69ff36910b8d9512cd46927594",
    upstream_date="2026-04-29",
    fixed_in="0.18.0",
    releases=">=0.16,<0.18",
    removal="no supported release is older than 0.18.0",
    updated="2026-11-24",
    target=INITIALIZE_STEP,
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(INITIALIZE_STEP,),
)
