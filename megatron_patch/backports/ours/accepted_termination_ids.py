"""End a request at a termination id that was speculated (a change of ours; upstream has none).

The token that a step samples last is compared with the termination id of its request. The tokens
before it, which were speculated and accepted, are not: where one of them is the termination id, the
request goes on behind it, until it meets another one or has all tokens that it may have. Whether
that happens depends on what was guessed.

With this patch the request ends there, and the tokens and log probs behind it are dropped. It
leaves the batch with the next step, as a request does that has found a stop word.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

REWIND = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller:"
    "TextGenerationController._rewind_kv_cache"
)

PROCESS = (
    "megatron.core.inference.engines.dynamic_engine:DynamicInferenceEngine.post_process_requests"
)


ACCEPTED_TERMINATION_IDS = Patch(
    id="accepted-termination-ids",
    kind=Kind.CORRECTNESS,
    summary="End a request at a termination id that was speculated and accepted",
    symptom=(
        "with speculative decoding a request goes on after its termination id (EOS), and its text "
        "has what follows the end"
    ),
    outcome="the tokens of decoding without speculation",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.17,<0.20",
    removal="upstream looks at the accepted tokens, too, and no supported release is older",
    updated="2026-11-26",
    target=REWIND,
    variants=(Variant("0.18", HUNKS.of("0.18")), Variant("0.17", HUNKS.of("0.17"))),
    told_by=(PROCESS,),
)
