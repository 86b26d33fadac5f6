"""Refresh the slices of the active requests with the operators that it takes (a change of ours).

In 0.18 and later ``initialize_attention_state()`` copies the metadata of the active requests to
the front of tensors with static addresses in each step. ``build_active_slices()`` takes two views
for each of its labels anew. ``pad_active_slices()`` fills paddings of no rows where a batch has the
size of its graph, and writes the rows whose logits are wanted to the GPU, two launches, although
those of a decode step are the numbers from 0 on, as in the step before.

With this patch the views are kept as long as the active requests are as many, in the same place,
and the tensors and their memory are the same; padding is written where there is any; and after a
decode step, the next one of as many requests writes no rows, unless somebody has written to their
tensor since. All tensors have the values that they had.

Not covered: a kernel of somebody's own that writes to ``active_logit_idxs`` without PyTorch's
knowledge; Megatron has none. While the context is suspended with ``RECOMPUTE``, the views keep the
old pinned buffer of the bookkeeping, of which they are a part, until the next step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..model import Family, Kind, Known, Patch, Replace, Substitute

if TYPE_CHECKING:
    import torch

CONTEXT = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext"
BUILD = f"{CONTEXT}.build_active_slices"
PAD = f"{CONTEXT}.pad_active_slices"


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
        pairs = [
            (self.active_request_metadata[label][:batch_size], whole[rows])
            for label, whole in self.request_metadata.items()
        ]
        lengths = self.request_query_lengths[rows]
        last_token_idxs = self.active_request_last_token_idxs[:batch_size]
        # The tensors are kept so that none of their ids becomes another's.
        kept = self._active_slice_views = (key, pairs, lengths, last_token_idxs, tensors)
    _, pairs, lengths, last_token_idxs, _ = kept
    for active, of_requests in pairs:
        active.copy_(of_requests)
    torch.cumsum(lengths, dim=0, out=last_token_idxs)
    last_token_idxs.sub_(1)


DECODE_ROWS = """\
self.active_logit_idxs[:active_decode_token_count].copy_(
    self._decode_logit_idxs[:active_decode_token_count]
)
"""
DECODE_ROWS_ONCE = """\
# Those of a decode step are there since the last one of as many tokens, if nobody has written to
# the tensor since. It is allocated anew where a context is suspended.
rows = self.active_logit_idxs
version = -1 if rows.is_inference() else rows._version
written = self.__dict__.get("_decode_rows", (None, 0, 0))
rows_are_there = (
    active_prefill_count == 0
    and written[0] is rows
    and written[1:] == (active_decode_token_count, version)
)
if not rows_are_there:
    self.active_logit_idxs[:active_decode_token_count].copy_(
        self._decode_logit_idxs[:active_decode_token_count]
    )
"""
OTHER_ROWS = """\
self.active_logit_idxs[active_decode_token_count + active_prefill_count :].zero_()
"""
OTHER_ROWS_ONCE = """\
if not rows_are_there:
    self.active_logit_idxs[active_decode_token_count + active_prefill_count :].zero_()
    is_known = active_prefill_count == 0 and not rows.is_inference()
    self._decode_rows = (
        (rows, active_decode_token_count, rows._version) if is_known else (None, 0, 0)
    )
"""
PADDING = """\
padding_request_slice = slice(active_request_count, self.padded_active_request_count)
"""
PADDING_IF_ANY = """\
if active_request_count >= self.padded_active_request_count:
    return
padding_request_slice = slice(active_request_count, self.padded_active_request_count)
"""


#: Of `pad_active_slices()`.
PAD_DIGEST = "74b6437ff46609ca"

ACTIVE_SLICE_VIEWS = Patch(
    id="active-slice-views",
    kind=Kind.PERFORMANCE,
    summary="Refresh the slices of the active requests without building views, or padding nothing",
    symptom=(
        "`build_active_slices()` and `pad_active_slices()` show up in the host profile of every "
        "decode step, with 41 small operators, two of them launches"
    ),
    outcome="the same values, from 11 operators and no launch where a batch stays as it is",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.18,<0.20",
    removal="upstream keeps the views of the active slices, in all supported releases",
    updated="2026-11-25",
    target=BUILD,
    families=(
        Family(
            "0.18.0 to 0.19.2, and main at 878228fd0f",
            (
                Replace(BUILD, build_active_slices, "35bb5d60e5c2e11c"),
                Substitute(PAD, DECODE_ROWS, DECODE_ROWS_ONCE, PAD_DIGEST),
                Substitute(PAD, OTHER_ROWS, OTHER_ROWS_ONCE, PAD_DIGEST),
                Substitute(PAD, PADDING, PADDING_IF_ANY, PAD_DIGEST),
            ),
        ),
    ),
    upstreamed=(),
    # It was new there, and has no sum to refresh.
    unaffected=(Known(BUILD, "8f7fd8d285262d8d", "main at 0d98cb838f"),),
)
