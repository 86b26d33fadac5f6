"""Run prompts of one token with grouped heads and flash-attn 2 (a change of ours).

In prefill, the tokens of a batch and its requests are padded to different numbers, such as 64 and
4. Attention gets the length of the longest query, which is 1 where all prefills of a step are
prompts of one token, and no request decodes several. With fewer heads of keys than of queries (GQA,
MQA), flash-attn 2 has a short cut for that, in which it takes the queries for one token of each
request: it gets 64 for 4 requests, and raises out of the step.

With this patch the longest query of a step with prefills is at least 2, as it is under CUDA graphs.
It is only an upper bound. Upstream has no such change.

What other prefills of one token there are, upstream avoids from 0.18 on: a last chunk and what the
prefix cache leaves of a prompt get a token more. ``one-token-prefill`` is for 0.16 and 0.17.

Not covered: the Mamba layers of hybrid models.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

CONTEXT = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext"

INITIALIZE = f"{CONTEXT}.initialize_attention_state"

#: As old as the host's own query lengths, which the longest one is taken from since 0.18.
TRANSFER = f"{CONTEXT}.transfer_bookkeeping_to_gpu"

GROUPED_ONE_TOKEN_PROMPTS = Patch(
    id="grouped-one-token-prompts",
    kind=Kind.CORRECTNESS,
    summary="Run prompts of one token with grouped heads and flash-attn 2",
    symptom=(
        "RuntimeError: shape '[...]' is invalid for input of size ... from flash_attn_varlen_func "
        "of flash-attn 2 ends the engine, with a model of grouped heads (GQA, num_query_groups) "
        "and a step whose prompts all have one token"
    ),
    outcome="such prompts decode to what the model alone decodes",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.18,<0.20",
    removal="upstream gives such a step a longest query over 1, and no supported release is older",
    updated="2026-11-26",
    target=TRANSFER,
    variants=(Variant("0.18", HUNKS.of("0.18")),),
    told_by=(INITIALIZE,),
)
