"""Copy the requests' sampling parameters to the host when they have changed (a change of ours).

In 0.16 and 0.17 the metadata of the requests is on the GPU, and the host reads most of it:
temperature, top-k, top-p and what log probs are wanted. ``_dynamic_step_context_init()`` copies
these six tensors to pinned memory in each step, before it launches the model, so the GPU waits
until the host has enqueued the copies, and then makes them. They change when requests come, end,
wait or move, which most decode steps have nothing of.

With this patch a tensor is copied where it, or its copy, has been written to since it was copied.
PyTorch counts that for each tensor (``Tensor._version``); where it does not, for those that were
made in inference mode, the tensor is copied in each step, as ever. The copies have the values that
they had.

Not covered: a kernel of somebody's own that writes to the metadata without PyTorch's knowledge;
Megatron has none.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller:"
    "TextGenerationController._dynamic_step_context_init"
)

REQUEST_METADATA_COPIES = Patch(
    id="request-metadata-copies",
    kind=Kind.PERFORMANCE,
    summary="Copy the requests' sampling parameters to the host when they have changed",
    symptom=(
        "each decode step copies six tensors of sampling parameters from the GPU before it "
        "launches the model, although no request has come or gone"
    ),
    outcome="the same values on the host, and no copy in steps that change none",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16,<0.18",
    removal="no supported release is older than 0.18.0, which keeps the metadata on the host",
    updated="2026-11-27",
    target=TARGET,
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(TARGET,),
)
