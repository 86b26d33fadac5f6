"""Let a request that comes back end at its stop words (a change of ours; upstream has none).

A request that is evicted for its blocks, or active when the engine is suspended and has to
recompute, goes on as a new request, whose prompt is the old one's with all that it has generated.
``DynamicInferenceRequestRecord.checkpoint()`` makes that one, and leaves out the stop words: an
evicted request goes on beyond them, up to its number of tokens. A resumed one has them again, but
looks for them only in what it has generated since: a word that began before the suspension is
missed by both. And a request that has found its stop word when it is cut off has to go through one
more step to end: if its prompt comes back in chunks, the first chunk takes the note that it is to
end, and the request goes on.

With this patch a request keeps its stop words, looks for them in all that it has generated, and
ends with the last chunk of its prompt. Where stop words are taken out of the answer, so are those
that began earlier, with their log probs. It also keeps its status, and what
``SamplingParams.add_attributes()`` has added.

Left out on purpose, as the releases do: what is computed afresh, and the prefix cache, whose use by
requests that come back upstream has on its main branch along with other accounting of the blocks
(#5995).

Not covered: what the second prefill has computed of a stop word that is taken out; no answer has
it.
"""

from __future__ import annotations

from ... import hunks
from ...edits import Requires
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

INFERENCE = "megatron.core.inference"

ENGINE = f"{INFERENCE}.engines.dynamic_engine:DynamicInferenceEngine"

CHECKPOINT = f"{INFERENCE}.inference_request:DynamicInferenceRequestRecord.checkpoint"

SEARCH = Requires(
    f"{ENGINE}._check_stop_words_for_request_post_append",
    "it looks for stop words at the end of what it is given, and reads nothing else of a request",
)

RESUMED_STOP_WORDS = Patch(
    id="resumed-stop-words",
    kind=Kind.CORRECTNESS,
    summary="Let a request that was evicted or suspended end at its stop words",
    symptom=(
        "a request with stop words that is evicted for its blocks, or suspended and recomputed, "
        "goes on beyond its stop word, up to its number of tokens"
    ),
    outcome="the request ends where it would have ended without that",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16,<0.20",
    removal="upstream keeps stop words in checkpoint(), and no supported release is older",
    updated="2026-11-26",
    target=CHECKPOINT,
    variants=(
        Variant("0.16", (*HUNKS.of("0.16"), SEARCH)),
        Variant("0.17", (*HUNKS.of("0.17"), SEARCH)),
    ),
    told_by=(CHECKPOINT,),
)
