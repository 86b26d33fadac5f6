"""Stage what the GPU reads of the requests without building views (a change of ours).

In 0.18 and later ``transfer_bookkeeping_to_gpu()`` copies six tensors of the requests, their
lengths and sampling parameters, to where the GPU's copy of the bookkeeping begins with the active
ones. It takes two slices for each of them anew in every step, while the GPU waits for the copy.

With this patch the slices are kept as numpy's arrays of the same memory as long as the active
requests are as many, in the same place, and the tensors and their memory are the same. All tensors
have the values that they had.

Not covered: the copy to the GPU itself, and PyTorch's version counters (``Tensor._version``) of
what is staged, which stay what they are. While the context is suspended with ``RECOMPUTE``, the
arrays keep the old pinned buffer of the bookkeeping, of which they are a part, until the next step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
from ... import hunks
from ...edits import Add
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

CONTEXT = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext"

TRANSFER = f"{CONTEXT}.transfer_bookkeeping_to_gpu"

HELPER = f"{CONTEXT}._stage_requests"


def _stage_requests(self: Any, n_active: int, padded_active: int) -> None:
    """Copy what the GPU reads of the active requests to where it is read from.

    Args:
        n_active (int): Active requests, whose lengths are copied.
        padded_active (int): Active requests and their padding, whose sampling parameters are.
    """
    first = self.paused_request_count
    sampling = self.active_request_metadata
    tensors = (
        self.request_in_prefill_status_tensor,
        self.request_query_lengths,
        self.request_kv_length_offsets,
        sampling["temperature"],
        sampling["top_k"],
        sampling["top_p"],
        self._staging_request_in_prefill_status,
        self._staging_request_query_lengths,
        self._staging_request_kv_length_offsets,
        self._staging_temperature,
        self._staging_top_k,
        self._staging_top_p,
    )
    # Not `==`, which compares what is in the tensors. Their memory may be exchanged, too.
    counts = (first, n_active, padded_active)
    key = (*counts, *map(id, tensors), *map(torch.Tensor.data_ptr, tensors))
    kept = self.__dict__.get("_staged_request_arrays")
    if kept is None or kept[0] != key:
        arrays = [tensor.numpy() for tensor in tensors]
        of_requests = [
            *(array[first : first + n_active] for array in arrays[:3]),
            *(array[:padded_active] for array in arrays[3:6]),
        ]
        staged = [
            *(array[:n_active] for array in arrays[6:9]),
            *(array[:padded_active] for array in arrays[9:]),
        ]
        # The tensors are kept so that none of their ids becomes another's.
        kept = (key, [*zip(staged, of_requests, strict=True)], tensors)
        self._staged_request_arrays = kept
    for staged_rows, rows in kept[1]:
        staged_rows[:] = rows


STAGED_REQUEST_ARRAYS = Patch(
    id="staged-request-arrays",
    kind=Kind.PERFORMANCE,
    summary="Stage what the GPU reads of the requests without building views",
    symptom=(
        "`transfer_bookkeeping_to_gpu()` shows up in the host profile of every decode step, with "
        "twelve slices and six copies of a few numbers before the copy to the GPU"
    ),
    outcome="the same values, from no operator where a batch stays as it is",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.18,<0.20",
    removal="upstream keeps the slices of what is staged, in all supported releases",
    updated="2026-11-27",
    target=TRANSFER,
    variants=(Variant("0.18", (*HUNKS.of("0.18"), Add(HELPER, _stage_requests))),),
    told_by=(TRANSFER,),
)
