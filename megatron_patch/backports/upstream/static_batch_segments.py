"""Give each request of a static batch all of its segments (upstream #5983 in part).

With ``return_segments``, the static engine returns the text of each token. It hands the tokens of
one request to ``detokenize_generations()``, and the lengths of the whole batch, of which the first
one is taken: the number of tokens that the first request of the batch generated. So the segments of
each other request end there. Its ``text`` is whole.

With this patch it hands over the length of that request alone.

Not covered: the other change of commit 066145edc3, the seed of sampling, is ``dp-sampling-seed``.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller"
    ":TextGenerationController.generate_all_output_tokens_static_batch"
)

STATIC_BATCH_SEGMENTS = Patch(
    id="static-batch-segments",
    kind=Kind.CORRECTNESS,
    summary="Give each request of a static batch all of its segments",
    symptom=(
        "with return_segments the static engine (StaticInferenceEngine, /api) returns fewer "
        "segments than tokens, for each request after the first one of its batch that generated "
        "more than the first one"
    ),
    outcome="a segment for each token, of the prompt and of what was generated",
    upstream_pr=5983,
    upstream_commit="066145edc3da2403d92661f2f5e96be13bbf7519",
    upstream_date="2026-07-24",
    fixed_in="0.19.0",
    releases=">=0.14,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-26",
    target=TARGET,
    variants=(Variant("0.14", HUNKS.of("0.14")),),
    told_by=(TARGET,),
)
