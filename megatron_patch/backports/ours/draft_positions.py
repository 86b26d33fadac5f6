"""Keep speculative tokens within the longest sequence (a change of ours; upstream has none).

The last steps of a request that may have as many tokens as ``max_sequence_length`` have speculative
tokens behind it. None of them is ever kept. But their positions are looked up, where there is
nothing: ``IndexError`` on a CPU and a failed assertion on a GPU, out of a step, from the table of
learned positions, or memory that is none of the table's, from that of rotary ones. Those of the
next drafts, which the layers of multi-token prediction make, go further behind. On 0.17 the table
of a request's blocks, too, is one short for a block that it gets ahead of time.

With this patch positions behind the last one are that one: what comes of such tokens is dropped, as
before. The table of blocks has one more column on 0.17, as upstream's #4191 has made it.

Not covered: the keys and values of such tokens, which have a place of their own.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

INFERENCE = "megatron.core.inference"

DRAFT = (
    f"{INFERENCE}.text_generation_controllers.text_generation_controller:"
    "TextGenerationController._compute_serial_mtp_and_sample"
)

DRAFT_POSITIONS = Patch(
    id="draft-positions",
    kind=Kind.CORRECTNESS,
    summary="Keep the positions of speculative tokens within the longest sequence",
    symptom=(
        "IndexError: index out of range in self, or a device-side assertion, in speculative "
        "decoding when a request comes near max_sequence_length; on 0.17 also IndexError: index 4 "
        "is out of bounds for dimension 1 with size 4, from resume_paused_requests()"
    ),
    outcome="the request gets all its tokens",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.17,<0.20",
    removal="upstream looks up no position behind the last one, and no supported release is older",
    updated="2026-11-26",
    target=DRAFT,
    variants=tuple(Variant(name, HUNKS.of(name)) for name in ("0.18", "0.19", "0.17")),
    told_by=(DRAFT,),
)
