"""Let the NVLS dispatcher read the token count of a resumed context. Ours; off by default.

Under CUDA graphs, ``NVLSAllGatherVDispatcher`` routes the tokens from ``real_token_count`` on to no
expert, for they are padding. The context gives it the tensor once, in its constructor. With
``KVCacheManagementMode.RECOMPUTE`` (and neither unified memory nor torch_memory_saver) a context
that is resumed makes its tensors anew, and writes the count of each step to a new one. The
dispatcher goes on reading the old one, which has the count of the last step before the suspension:
in a step with more tokens, those beyond it get nothing from the experts. Wrong tokens, without an
error. With this patch the context gives the dispatcher each tensor that it makes.

Upstream has the defect in 0.19.0 to 0.19.2 and, on 2026-08-22, in main;
``docs/upstream/nvls-real-token-count.md`` is what to tell them. Until they have confirmed it, the
patch has to be asked for: ``MEGATRON_PATCH=all,nvls-real-token-count``.

Not covered: contexts that share a process. The dispatcher has one tensor for all, that of the
context that was made or resumed last, with and without the patch.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

CONTEXT = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext"

NVLS_REAL_TOKEN_COUNT = Patch(
    id="nvls-real-token-count",
    kind=Kind.CORRECTNESS,
    summary="Let the NVLS dispatcher read the token count of a resumed context",
    symptom=(
        "an expert-parallel model with inference_moe_token_dispatcher_type='nvls' answers wrong "
        "after its engine was suspended and resumed with KVCacheManagementMode.RECOMPUTE, in "
        "steps with more tokens than the last one before"
    ),
    outcome="the dispatcher reads the token count of the step",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.19,<0.20",
    removal="upstream has fixed it and no supported release is without the fix",
    updated="2026-11-24",
    target=f"{CONTEXT}.copy_async_sched_sample_to_forward",
    variants=(Variant("0.19", HUNKS.of("0.19")),),
    default=False,
)
