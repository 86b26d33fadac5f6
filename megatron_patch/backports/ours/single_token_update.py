"""Do without speculation's work where there is none (a change of ours; upstream has none).

``update_requests()`` expands each request to the tokens that it gets in the next step. Without
speculative tokens that is one, and all of it the identity: ``repeat_interleave(1)``, the sum with
the offsets ``[0].repeat(requests)``, the copy of the old offsets, and which tokens cross a block
boundary, which is computed and then not used. On 0.17 the bookkeeping is on the GPU: there, each is
a kernel launch, and the ``.any()`` of the last is a wait for the device in each step.

With this patch that work is done only for more than one token. The next step of a single token is
written to where it belongs, and the requests that go on, end or need a block are counted in lists
that are read once, not each with three operators and a wait. Where nothing is paused, the blocks of
what is paused are not counted. On 0.18 and later, where all of it is on the host, numpy's arrays of
the same memory take the place of operators, which cost several times as much for 16 numbers. All
tensors have the values that they had, with speculative tokens too.

Not covered: PyTorch's version counters (``Tensor._version``) of the bookkeeping on the host, which
arrays leave as they are. While the context is suspended with ``RECOMPUTE``, the arrays keep the old
pinned buffer of the bookkeeping, of which they are a part, until the next step.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

UPDATE = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext.update_requests"

SINGLE_TOKEN_UPDATE = Patch(
    id="single-token-update",
    kind=Kind.PERFORMANCE,
    summary="Do without the work of speculative tokens where there are none",
    symptom=(
        "update_requests() of every decode step expands each request to one token with operators "
        "that change nothing; on 0.17 it waits for the GPU for each number that it counts"
    ),
    outcome=(
        "the same bookkeeping with a third of the operators and two waits for the GPU on 0.17, and "
        "with a tenth of the operators from 0.18 on"
    ),
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.17,<0.20",
    removal="upstream does no such work, and no supported release is older",
    updated="2026-11-27",
    target=UPDATE,
    variants=(
        Variant("0.17", HUNKS.of("0.17")),
        Variant("0.18", HUNKS.of("0.18")),
        Variant("main-da5a81d491", HUNKS.of("main-da5a81d491")),
    ),
    told_by=(UPDATE,),
)
