"""Fill the metadata of attention with the operators that it takes (a change of ours).

In 0.16 and 0.17 the lengths and the block table that attention reads are on the GPU, and
``MHAMetadata.update()`` fills them in each decode step with sixteen operators, among them
copies of what could have been written to its place, and fills of no rows where a batch has the size
of its graph. ``reset()`` writes zeros to all of it, for the metadata with and without CUDA graphs,
ten operators a step. On the host each is a launch.

With this patch sums are written to where they belong, padding is written where there is any, and
``reset()`` leaves the buffers: nothing reads them before the next ``update()``, which writes each
row that it shows. Each row has the values that it had.

Not covered: 0.14 and 0.15, whose ``update()`` is another one, and 0.18 and later, which fill the
metadata on the host.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

MODULE = "megatron.core.inference.contexts.attention_context"

#: What calls `reset()` is there in all releases.
TARGET = (
    "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext.reset_attention_state"
)

#: It takes what was filled on the host, since #4306.
ON_HOST = f"{MODULE}.mha_metadata:MHAMetadata.set_state_data"

ATTENTION_METADATA_UPDATE = Patch(
    id="attention-metadata-update",
    kind=Kind.PERFORMANCE,
    summary="Fill the metadata of attention with 6 operators in place of 26",
    symptom=(
        "`MHAMetadata.update()`, `MHAMetadata.reset()` and `tensor_copy_and_pad()` show up in the "
        "host profile of every decode step, with 26 small operators"
    ),
    outcome="the same values, from 6 operators where a batch has the size of its graph",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16,<0.18",
    removal="no supported release is older than 0.18.0",
    updated="2026-11-24",
    target=TARGET,
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(
        TARGET,
        ON_HOST,
    ),
)
