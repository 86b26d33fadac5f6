"""Give each pipeline stage a KV cache of as many layers as it has (upstream #4775).

The dynamic context divides the layers evenly among the stages of a pipeline. A model may be divided
otherwise: with fewer layers in the first or the last stage, with the embedding or the loss counted
as a layer, or by a layout. Then a stage with more layers than the average ends with KeyError when
one of them writes to the cache, and another stage has a cache for layers that it has not.

With this patch the context has the layers that the model builds on its stage. In 0.16 only
``DynamicInferenceContext.from_config()``, which the static engine calls, divides the layers; who
makes a context there says how many it has.

What differs from upstream's commit 43fb2f5d53: without a pipeline nothing is asked for that was not
before, such as an initialised parallel state.

Not covered: hybrid models, which say themselves which layers they have on a stage.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

CONTEXT = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext"

UNEVEN_PIPELINE = Patch(
    id="uneven-pipeline",
    kind=Kind.CORRECTNESS,
    summary="Give each pipeline stage a KV cache of as many layers as it has",
    symptom=(
        "KeyError from append_key_value_cache() with pipeline parallelism when not all stages have "
        "the same number of layers, such as with num_layers_in_first_pipeline_stage (0.16: in the "
        "static engine)"
    ),
    outcome="the context of each stage has the layers of the model on it",
    upstream_pr=4775,
    upstream_commit="43fb2f5d53eeebe46ecd192d52377d4e3e84947c",
    upstream_date="2026-05-19",
    fixed_in="0.18.0",
    releases=">=0.16,<0.18",
    removal="no supported release is older than 0.18.0",
    updated="2026-11-26",
    target=f"{CONTEXT}.__init__",
    variants=(
        Variant("0.16", HUNKS.of("0.16")),
        Variant("0.17", HUNKS.of("0.17")),
    ),
    told_by=(f"{CONTEXT}.__init__", f"{CONTEXT}.from_config"),
)
