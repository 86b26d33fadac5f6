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

from ..model import Add, Family, Kind, Known, Patch, Substitute

CONTEXT = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext"
INITIALIZE = f"{CONTEXT}.initialize_attention_state"
INITIALIZE_STEP = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller:"
    "TextGenerationController._dynamic_step_context_init"
)

SECOND = """\
range_pop()
range_push("transfer_bookkeeping_to_gpu")
context.transfer_bookkeeping_to_gpu()
range_pop()

set_moe_metadata_sync(unwrapped_model)
"""
ONCE = """\
range_pop()

# The context has also transferred its bookkeeping state to the GPU.
is_transferred = getattr(type(context), "_is_transferred_when_initialized", None)
if is_transferred is None or not is_transferred(context):
    range_push("transfer_bookkeeping_to_gpu")
    context.transfer_bookkeeping_to_gpu()
    range_pop()

set_moe_metadata_sync(unwrapped_model)
"""
KNOWN = """\
@staticmethod
def _is_transferred_when_initialized(context, initialize=initialize_attention_state):
    \"""Whether ``context`` is initialised by this very function, which ends with a transfer.\"""
    own = "initialize_attention_state" in vars(context)
    return not own and type(context).initialize_attention_state is initialize
"""

# The same statements: what changes is the comment between them, which is not true any more.
FIRST = """\
self._execute_pending_mamba_ops()
self.transfer_bookkeeping_to_gpu()
"""
ONLY = """\
self._execute_pending_mamba_ops()

# For the controller, and for callers that go on with the model without it.
self.transfer_bookkeeping_to_gpu()
"""


def _family(releases: str, digest: str) -> Family:
    return Family(
        releases,
        (
            Substitute(INITIALIZE_STEP, SECOND, ONCE, "f5ce26a511f7ce4d"),
            Substitute(INITIALIZE, FIRST, ONLY, digest),
            Add(f"{CONTEXT}._is_transferred_when_initialized", KNOWN),
        ),
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
    families=(
        _family("main at 342dd59a52 (#4306)", "940a7ccdadc8e0a4"),
        _family("0.18.0 to 0.18.2, and main at c817dad280", "ec37a9307653601d"),
    ),
    upstreamed=(Known(INITIALIZE_STEP, "eb2f26f532f8d161", "0.19.0 and later"),),
)
