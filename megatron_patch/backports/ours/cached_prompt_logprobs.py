"""Score the whole prompt where its beginning is cached (a change of ours; upstream has none).

With prefix caching a prompt begins with the blocks that an earlier one has left, and the model gets
the rest of it. There are no logits of what it does not get, so there are no log probs. The engine
files those that there are from the front: in the places of the cached tokens are values of later
ones, and as many of the generated tokens are missing. The second of two equal prompts of 30 tokens
gets none for its 4 generated tokens.

With this patch the model gets all of a prompt whose log probs are wanted. The request shares the
cached blocks as before, and computes what is in them again, as hybrid models without a cache of
their states do: so memory, reference counts and what is cached are as they were, and the prefill
takes as long as without prefix caching. Requests that want no log probs, or those of generated
tokens alone, skip what is cached.

Not covered: the keys and values of a shared block are written again by other sums, and may differ
in rounding from those that were there; after an update of the weights they are those of the new
ones, as for any prompt that is not cached. And the count of cached tokens (``num_cached_tokens``,
0.19) is that of the tokens whose blocks are shared.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

MATCH = (
    "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext._compute_prefix_match"
)

CACHED_PROMPT_LOGPROBS = Patch(
    id="cached-prompt-logprobs",
    kind=Kind.CORRECTNESS,
    summary="Score all tokens of a prompt with prefix caching, those that are cached too",
    symptom=(
        "with prefix caching and return_log_probs, generated_log_probs is empty or shorter than "
        "generated_tokens for a prompt that was seen before, and prompt_log_probs has values of "
        "other tokens"
    ),
    outcome="the same log probs as for a request that finds nothing cached",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.17,<0.20",
    removal="upstream scores prompts that are cached, and no supported release is older",
    updated="2026-11-26",
    target=MATCH,
    variants=(Variant("0.17", HUNKS.of("0.17")),),
    told_by=(MATCH,),
)
