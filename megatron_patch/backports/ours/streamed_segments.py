"""Stream the tokens of a request that wants segments (a change of ours; upstream has none).

The static engine streams a request's tokens from another thread. With ``return_segments`` it asks
``detokenize_generations()`` for the text of each token, and gives it a single number where it takes
a list of lengths. That raises ``TypeError``, which nobody sees, since nobody asks for what the
thread's calls return: the stream ends and has given nothing.

With this patch it gives it the length of what was generated, and the request in the stream has a
list of strings in ``generated_segments``, as its type says.

Not covered: another error in that thread is lost as before.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TARGET = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller"
    ":TextGenerationController.stream_tokens"
)

STREAMED_SEGMENTS = Patch(
    id="streamed-segments",
    kind=Kind.CORRECTNESS,
    summary="Stream the tokens of a request that wants segments",
    symptom=(
        "the stream of the static engine (streaming=True, get_stream_generator()) is empty with "
        "return_segments, without any error"
    ),
    outcome="the stream has each token, with the segments so far",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.14,<0.20",
    removal="upstream streams segments, and no supported release is older",
    updated="2026-11-26",
    target=TARGET,
    variants=(Variant("0.14", HUNKS.of("0.14")),),
    told_by=(TARGET,),
)
