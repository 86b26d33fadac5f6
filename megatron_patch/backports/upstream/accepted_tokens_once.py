"""Count accepted speculative tokens once in the length of a request (upstream #4191 in part).

After each step the controller adds to the length of a request what the step has generated, to see
whether it is long enough. The length is that of the keys and values, and those of the speculative
tokens that were accepted are there: they were part of the step. But it adds them again, so a
request ends when its next steps could generate as many tokens as were just accepted: with 12 tokens
to generate it has 10. What it ends with depends on what was guessed.

With this patch only the token that was sampled is added.

What differs from upstream's commit 980211ae63: its other fixes, of steps of expert-parallel ranks
without requests and of attention, are not in here. That of the block table is in
``draft-positions``.

Not covered: log probs, which have as many as tokens with and without this patch.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

BOOKKEEPING = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller:"
    "TextGenerationController._dynamic_step_context_bookkeeping"
)

CONTROLLER = BOOKKEEPING.rpartition(".")[0]

ACCEPTED_TOKENS_ONCE = Patch(
    id="accepted-tokens-once",
    kind=Kind.CORRECTNESS,
    summary="Count accepted speculative tokens once in the length of a request",
    symptom=(
        "with speculative decoding (num_speculative_tokens) a request ends with fewer tokens than "
        "num_tokens_to_generate, such as 10 of 12, without its termination id"
    ),
    outcome="as many tokens as were asked for",
    upstream_pr=4191,
    upstream_commit="980211ae6308dd541ec24bfe5af664ef31215256",
    upstream_date="2026-04-08",
    fixed_in="0.18.0",
    releases=">=0.17,<0.18",
    removal="no supported release is older than 0.18.0",
    updated="2026-11-26",
    target=f"{CONTROLLER}._rewind_kv_cache",
    variants=(Variant("0.17", HUNKS.of("0.17")),),
    told_by=(BOOKKEEPING,),
)
