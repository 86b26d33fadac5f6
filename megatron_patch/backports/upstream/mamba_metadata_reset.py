"""Let Mamba states be returned after a reset under inference mode (upstream #6584 in part).

``MambaMetadata.reset()`` makes a new tensor for the pool of free Mamba states. Under
``torch.inference_mode()``, where 0.18 and 0.19 reset after each CUDA graph that they capture, and
where callers of the engine may reset on any release, that is an inference tensor. A request that
ends outside of that mode returns its state to the pool, and that raises.

With this patch the new tensor is an ordinary one in any mode.

What differs from upstream: it fills the tensor that there is. Here it is a new one as before, so
that what somebody holds of the old one keeps its values.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = "megatron.core.inference.contexts.attention_context.mamba_metadata:MambaMetadata.reset"

MAMBA_METADATA_RESET = Patch(
    id="mamba-metadata-reset",
    kind=Kind.CORRECTNESS,
    summary="Let Mamba states be returned after a reset under inference mode",
    symptom=(
        "RuntimeError: Inplace update to inference tensor outside InferenceMode is not allowed, "
        "from free_slots() of a hybrid model's MambaMetadata, after a reset under "
        "torch.inference_mode() such as that of CUDA graph warm-up"
    ),
    outcome="requests end and return their Mamba states, in and outside of inference mode",
    upstream_pr=6584,
    upstream_commit="731b791469004f8fdcb896e65d610d6b1b0ebb32",
    upstream_date="2026-08-19",
    fixed_in="0.20.0",
    releases=">=0.16,<0.20",
    removal="no supported release is older than 0.20.0",
    updated="2026-11-26",
    target=TARGET,
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(TARGET,),
)
