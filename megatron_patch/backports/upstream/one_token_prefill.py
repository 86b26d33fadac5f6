"""Run the prefill kernel for prefills of one token, too (upstream #4191 in part).

In prefill, the tokens of a batch and its requests are padded to different numbers, such as 64 and
4; in decode steps to the same. Attention gets the length of the longest query. Where all prefills
of a step have one token, this is 1, as in a decode step, and is taken for that:

- 0.17 chooses the kernel by it, and gives 64 tokens and 4 rows of the block table to the kernel
  for decode steps.
- 0.16 chooses by the kind of the step. But with fewer heads of keys than of queries (GQA),
  flash-attn 2 has a short cut for a longest query of 1, and expects one token for each row.

Either raises out of the step. Such prefills are prompts of one token; the last chunk of a split
prompt; and, with prefix caching, prompts of which all or all but one token are in cached blocks.

With this patch the longest query of a step with prefills is at least 2, as it is under CUDA graphs.
It is only an upper bound, and results are those of the kernel that all other prompts get.

What differs from upstream: commit 980211ae63 has gone back to choosing by the kind of the step, and
has changed what the decode kernel gets, for the sake of speculative decoding. For flash-attn 2,
upstream avoids one-token prefills instead: the last chunk gets a token more (#3404, #3840), and a
cached block is prefilled again rather than its last token alone (#4030). Neither is needed here,
and a prompt that is all cached costs one token.

Not covered: the Mamba layers of hybrid models. 0.18 and later fail with flash-attn 2 and GQA where
all prefills of a step are prompts of one token: that is ``grouped-one-token-prompts``. 0.14 and
0.15 treat a step of one-token prefills as a decode step throughout, which is right.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

CORE = "megatron.core"

CONTEXTS = f"{CORE}.inference.contexts"

INITIALIZE = f"{CONTEXTS}.dynamic_context:DynamicInferenceContext.initialize_attention_state"

ATTENTION = f"{CORE}.transformer.attention:Attention.flash_decode_and_prefill"

ONE_TOKEN_PREFILL = Patch(
    id="one-token-prefill",
    kind=Kind.CORRECTNESS,
    summary="Run the prefill kernel for prefills of one token, too",
    symptom=(
        "the engine step raises from flash-attn, about the shape of the block table or of the "
        "sequence lengths, for a prompt of one token, for a prompt that is one token longer than "
        "its chunks, or for one that the prefix cache has all of"
    ),
    outcome="such prompts decode to what the model alone decodes",
    upstream_pr=4191,
    upstream_commit="980211ae6308dd541ec24bfe5af664ef31215256",
    upstream_date="2026-04-09",
    fixed_in="0.18.0",
    releases=">=0.16,<0.18",
    removal="no supported release is older than 0.18.0",
    updated="2026-11-26",
    target=INITIALIZE,
    variants=(Variant("0.16", HUNKS.of("0.16")),),
    told_by=(
        ATTENTION,
        INITIALIZE,
    ),
)
