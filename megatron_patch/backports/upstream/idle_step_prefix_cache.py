"""Keep the prefix cache over an idle step of an expert-parallel rank (upstream #5502 in part).

With expert parallelism a rank without requests makes a dummy forward pass for each step of the
others, and resets the context after it. That empties the prefix cache, too: what the rank had
cached is gone as soon as it is idle while another rank is not, and a later request with the same
prefix computes it again. In 0.17 only with CUDA graphs: without, it resets nothing.

With this patch the cached blocks, and the clock that says which of them was used last, stay. The
dummy requests hold no block of the pool, so nothing is lost by that.

What differs from upstream's commit e5344abbdf: all else of the context is reset as before, the
number of steps and the cached states of Mamba layers included. And nothing of what it changes in
the caching of hybrid models. Before 0.17 (main until #3225) the number of steps is the clock of the
cache, and stays with it.

Not covered: hybrid models, whose Mamba states are not kept, so that their prefixes are computed
again.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

INFERENCE = "megatron.core.inference"

CONTROLLER = f"{INFERENCE}.text_generation_controllers.text_generation_controller"

DUMMY_FORWARD = f"{CONTROLLER}:TextGenerationController.dummy_forward"

IDLE_STEP_PREFIX_CACHE = Patch(
    id="idle-step-prefix-cache",
    kind=Kind.CORRECTNESS,
    summary="Keep the prefix cache over an idle step of an expert-parallel rank",
    symptom=(
        "with expert parallelism the hit rate of the prefix cache is near 0: dummy_forward() "
        "empties it whenever a rank has no requests while others have"
    ),
    outcome="cached prefixes stay, and are used by later requests",
    upstream_pr=5502,
    upstream_commit="e5344abbdf8193c503032218f118a861690e7b29",
    upstream_date="2026-07-14",
    fixed_in="0.19.0",
    releases=">=0.17,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-26",
    target=f"{INFERENCE}.contexts.dynamic_context:DynamicInferenceContext._compute_prefix_match",
    variants=tuple(
        Variant(name, HUNKS.of(name)) for name in ("main-c9312e6a54", "0.17", "main-53b5e6eff9")
    ),
    told_by=(DUMMY_FORWARD,),
)
