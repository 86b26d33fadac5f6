"""Copy no input of a CUDA graph onto itself (upstream #3948).

With a CUDA graph for each layer, what a layer returns is the memory that the graph of the next one
reads. Before each replay 0.16 copies a layer's inputs to where its graph reads them, also where
they are there already: all layers but the first copy the hidden states onto themselves, a kernel a
layer in each decode step.

With this patch an input that is at its place is not copied. 0.14 and 0.15 compare addresses, too.

What differs from upstream: an input that begins there, and has other strides, is copied as before.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = "megatron.core.transformer.cuda_graphs:_CudagraphReplayNode.forward"

GRAPH_INPUT_COPIES = Patch(
    id="graph-input-copies",
    kind=Kind.PERFORMANCE,
    summary="Copy no input of a CUDA graph onto itself",
    symptom=(
        "with CUDA graphs of layers, a profile of a decode step shows a copy kernel before the "
        "graph of each layer, which copies the hidden states onto themselves"
    ),
    outcome="a launch less for each layer but the first, and the same outputs in the same memory",
    upstream_pr=3948,
    upstream_commit="9ff763aa421b5e1af0a69f90a1ee648cd185d9d0",
    upstream_date="2026-03-19",
    fixed_in="0.17.0",
    releases=">=0.16,<0.17",
    removal="no supported release is older than 0.17.0",
    updated="2026-11-26",
    target=TARGET,
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(TARGET,),
)
