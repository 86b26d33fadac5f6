"""Make the transfer of the bookkeeping buffer once per step (upstream #5549 in part).

``DynamicInferenceContext.initialize_attention_state()`` ends with a transfer of the bookkeeping
buffer to the GPU, and the controller, who calls it in each step, then makes the same one again.
With ``bookkeeping-transfer-sync`` each of them waits for its copy.

With this patch the controller leaves it at the first. Whoever calls
``initialize_attention_state()`` or ``transfer_bookkeeping_to_gpu()`` directly gets what they got
before. The patch applies only where ``initialize_attention_state()`` is known, too, and so is known
to make the transfer; and the controller makes its own all the same when the context has another
such method, for example one of a subclass that changes something after the transfer.

What differs from upstream's commit f41ec54958: it also makes the first transfer optional, for the
sake of asynchronous scheduling.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

CONTEXT = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext"

INITIALIZE_STEP = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller:"
    "TextGenerationController._dynamic_step_context_init"
)

SINGLE_BOOKKEEPING_TRANSFER = Patch(
    id="single-bookkeeping-transfer",
    kind=Kind.PERFORMANCE,
    summary="Transfer the bookkeeping buffer to the GPU once per step, not twice",
    symptom="each decode step copies the same buffer to the GPU twice",
    outcome="one transfer for each decode step",
    upstream_pr=5549,
    upstream_commit="f41ec54958a0e4962c45cefb108a1c60a6a93beb",
    upstream_date="2026-07-20",
    fixed_in="0.19.0",
    releases=">=0.18,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-25",
    target=f"{CONTEXT}.transfer_bookkeeping_to_gpu",
    variants=(Variant("0.18", HUNKS.of("0.18")),),
    told_by=(INITIALIZE_STEP,),
)
