"""Write attention's lengths with the operators that it takes (a change of ours).

In 0.18 and later ``initialize_attention_state()`` writes four tensors of lengths for attention in
each step: those of the queries and of the keys and values, and the sums of both. It takes the same
slices of them and of the requests' own tensors again and again, makes three temporary tensors, sets
two zeros that are there already, and fills three paddings of no tokens where a batch has the size
of its graph.

With this patch the slices are kept as long as the active requests are as many, in the same place,
and the tensors and their memory are the same, and as numpy's arrays, which cost less than tensors;
the results are written where they belong; and
padding is written where there is any. All tensors have the values that they had.

Not covered: the block table, which is written in between, and PyTorch's version counters
(``Tensor._version``) of the lengths, which stay what they are. While the context is suspended with
``RECOMPUTE``, the slices keep the old pinned buffer of the bookkeeping, of which they are a part,
until the next step.
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

HELPER = f"{CONTEXT}._attention_length_views"

#: Came with the bookkeeping on the host: without it, there are no such tensors.
TRANSFER = f"{CONTEXT}.transfer_bookkeeping_to_gpu"


def _attention_length_views(self: Any) -> tuple[object, ...]:
    """The active requests' part of the tensors of lengths, and zeros in front of the sums.

    Returns:
        numpy's arrays of the same memory: query lengths and KV offsets as the context keeps
        them; and, as attention gets them, query lengths, their sums, KV lengths and their sums.
        The sums are without the zero in front.
    """
    first = self.paused_request_count
    count = self.total_request_count - first
    tensors = (
        self.request_query_lengths,
        self.request_kv_length_offsets,
        self._cpu_mha_query_lengths,
        self._cpu_mha_cu_query_seq_lengths,
        self._cpu_mha_kv_seq_lengths,
        self._cpu_mha_cu_kv_seq_lengths,
    )
    # Not `==` of the tensors, which compares what is in them. Their memory may be exchanged, too.
    key = (first, count, *map(id, tensors), *map(torch.Tensor.data_ptr, tensors))
    arrays: tuple[object, ...]
    kept_key, arrays, sums, _ = self.__dict__.get("_attention_lengths", (None, (), (), ()))
    if kept_key != key:
        lengths, kv_offsets, mha_lengths, cu_lengths, mha_kv_lengths, cu_kv_lengths = (
            tensor.numpy() for tensor in tensors
        )
        sums = (cu_lengths, cu_kv_lengths)
        arrays = (
            lengths[first : first + count],
            kv_offsets[first : first + count],
            mha_lengths[:count],
            cu_lengths[1 : count + 1],
            mha_kv_lengths[:count],
            cu_kv_lengths[1 : count + 1],
        )
        # The tensors are kept so that none of their ids becomes another's.
        self._attention_lengths = (key, arrays, sums, tensors)
    for of_all in sums:
        of_all[0] = 0
    return arrays


ATTENTION_LENGTH_VIEWS = Patch(
    id="attention-length-views",
    kind=Kind.PERFORMANCE,
    summary="Write attention's lengths without building slices, or padding nothing",
    symptom=(
        "`initialize_attention_state()` shows up in the host profile of every decode step, with "
        "thirty small operators for four tensors of lengths"
    ),
    outcome="the same values, from no operator where a batch stays as it is",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.18,<0.20",
    removal="upstream keeps the slices of the lengths, in all supported releases",
    updated="2026-11-27",
    target=TRANSFER,
    variants=(
        Variant(
            "0.18",
            (
                *HUNKS.of("0.18"),
                Add(HELPER, _attention_length_views),
            ),
        ),
    ),
)
