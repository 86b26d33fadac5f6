"""Keep requests while graphs are captured at the end of a suspension (ours; upstream has none).

With ``kv_cache_management_mode`` "offload", an engine that is suspended keeps its requests and
their KV cache. The cache may then have moved, so that ``resume()`` captures CUDA graphs again,
unless memory pointers are static. ``create_cuda_graphs()`` adds dummy requests to the context, and
resets it after each graph. Where they find no room beside the requests that were kept, that is a
``RequestOverflowError``; else the reset forgets those. They never end, their blocks are handed out
again, and a prompt that is half-way through its chunks goes on without the keys and values of the
chunks before.

With this patch ``resume()`` puts the bookkeeping of the context aside, empties it, captures, and
puts the bookkeeping back, in the same storage, to which graphs refer. What dummy requests write
over comes back as well: the states of Mamba layers, and what asynchronous scheduling has left of
the last forward pass. They write to the dummy block of the KV cache alone. All this is of a context
with requests; one without any is captured and reset as released.

Not covered: the prefix cache of a context without requests. The reset empties it, as released.
Between suspension and resumption weights may have changed, and keys and values of the old ones
would be found again.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine.resume"

RESUMED_GRAPH_CAPTURE = Patch(
    id="resumed-graph-capture",
    kind=Kind.CORRECTNESS,
    summary="Keep requests while a resumed engine captures CUDA graphs",
    symptom=(
        "RequestOverflowError ends an engine with CUDA graphs and kv_cache_management_mode "
        '"offload" as it is resumed, or its requests never end or have wrong tokens from then on'
    ),
    outcome="the requests go on as if the engine had not been suspended",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.17,<0.20",
    removal="upstream keeps requests while graphs are captured, and no supported release is older",
    updated="2026-11-27",
    target=TARGET,
    variants=(Variant("0.17", HUNKS.of("0.17")),),
    told_by=(TARGET,),
)
