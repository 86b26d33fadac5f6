"""Refresh the slices of the active requests with the operators that it takes (a change of ours).

In 0.18 and later ``initialize_attention_state()`` copies the metadata of the active requests to
the front of tensors with static addresses in each step. ``build_active_slices()`` takes two views
for each of its labels anew. ``pad_active_slices()`` fills paddings of no rows where a batch has the
size of its graph, and writes the rows whose logits are wanted to the GPU, two launches, although
those of a decode step are the numbers from 0 on, as in the step before.

With this patch the views are kept as long as the active requests are as many, in the same place,
and the tensors and their memory are the same, and as numpy's arrays, which are refreshed at less
cost than tensors; padding is written where there is any; and after a
decode step, the next one of as many requests writes no rows, unless somebody has written to their
tensor since. All tensors have the values that they had.

Not covered: a kernel of somebody's own that writes to ``active_logit_idxs`` without PyTorch's
knowledge; Megatron has none. PyTorch's version counters (``Tensor._version``) of the slices stay
what they are. While the context is suspended with ``RECOMPUTE``, the views keep the
old pinned buffer of the bookkeeping, of which they are a part, until the next step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
from ... import hunks
from ...edits import Replace
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

CONTEXT = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext"

BUILD = f"{CONTEXT}.build_active_slices"


def build_active_slices(self: Any, batch_size: int) -> None:
    """Refresh the slices of the active requests, for the kernels that read static addresses.

    Args:
        batch_size (int): Rows to refresh: the active requests and their padding.
    """
    tensors = [
        *self.request_metadata.values(),
        *self.active_request_metadata.values(),
        self.request_query_lengths,
        self.active_request_last_token_idxs,
    ]
    first = self.paused_request_count
    # Not `==`, which compares what is in the tensors. Their memory may be exchanged, too.
    key = [first, batch_size, *map(id, tensors), *map(torch.Tensor.data_ptr, tensors)]
    kept = self.__dict__.get("_active_slice_views")
    if kept is None or kept[0] != key:
        rows = slice(first, first + batch_size)
        # All on the host, where an array of the same memory costs less than an operator.
        pairs = [
            (self.active_request_metadata[label][:batch_size].numpy(), whole[rows].numpy())
            for label, whole in self.request_metadata.items()
        ]
        lengths = self.request_query_lengths[rows].numpy()
        last_token_idxs = self.active_request_last_token_idxs[:batch_size].numpy()
        # The tensors are kept so that none of their ids becomes another's.
        kept = self._active_slice_views = (key, pairs, lengths, last_token_idxs, tensors)
    _, pairs, lengths, last_token_idxs, _ = kept
    for active, of_requests in pairs:
        active[:] = of_requests
    lengths.cumsum(dtype=last_token_idxs.dtype, out=last_token_idxs)
    last_token_idxs -= 1


ACTIVE_SLICE_VIEWS = Patch(
    id="active-slice-views",
    kind=Kind.PERFORMANCE,
    summary="Refresh the slices of the active requests without building views, or padding nothing",
    symptom=(
        "`build_active_slices()` and `pad_active_slices()` show up in the host profile of every "
        "decode step, with 41 small operators, two of them launches"
    ),
    outcome="the same values, from two slices and no launch where a batch stays as it is",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.18,<0.20",
    removal="upstream keeps the views of the active slices, in all supported releases",
    updated="2026-11-27",
    target=BUILD,
    variants=(
        Variant(
            "0.18",
            (
                Replace(BUILD, build_active_slices),
                *HUNKS.of("0.18"),
            ),
        ),
    ),
    told_by=(BUILD,),
)
