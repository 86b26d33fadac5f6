"""Write attention's lengths with the operators that it takes (a change of ours).

In 0.18 and later ``initialize_attention_state()`` writes four tensors of lengths for attention in
each step: those of the queries and of the keys and values, and the sums of both. It takes the same
slices of them and of the requests' own tensors again and again, makes three temporary tensors, sets
two zeros that are there already, and fills three paddings of no tokens where a batch has the size
of its graph.

With this patch the slices are kept as long as the active requests are as many, in the same place,
and the tensors and their memory are the same; the results are written where they belong; and
padding is written where there is any. All tensors have the values that they had.

Not covered: the block table, which is written in between. While the context is suspended with
``RECOMPUTE``, the slices keep the old pinned buffer of the bookkeeping, of which they are a part,
until the next step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..model import Add, Family, Kind, Patch, Substitute

if TYPE_CHECKING:
    import torch

CONTEXT = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext"
INITIALIZE = f"{CONTEXT}.initialize_attention_state"
HELPER = f"{CONTEXT}._attention_length_views"
#: Came with the bookkeeping on the host: without it, there are no such tensors.
TRANSFER = f"{CONTEXT}.transfer_bookkeeping_to_gpu"


def _attention_length_views(self: Any) -> tuple[torch.Tensor, ...]:
    """The active requests' part of the tensors of lengths, and zeros in front of the sums.

    Returns:
        Query lengths and KV offsets as the context keeps them; and, as attention gets them,
        query lengths, their sums, KV lengths and their sums. The sums are without the zero
        in front.
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
    views: tuple[torch.Tensor, ...]
    zeros: tuple[torch.Tensor, ...]
    kept_key, views, zeros, _ = self.__dict__.get("_attention_lengths", (None, (), (), ()))
    if kept_key != key:
        lengths, kv_offsets, mha_lengths, cu_lengths, mha_kv_lengths, cu_kv_lengths = tensors
        zeros = (cu_lengths[0], cu_kv_lengths[0])
        views = (
            lengths[first : first + count],
            kv_offsets[first : first + count],
            mha_lengths[:count],
            cu_lengths[1 : count + 1],
            mha_kv_lengths[:count],
            cu_kv_lengths[1 : count + 1],
        )
        # The tensors are kept so that none of their ids becomes another's.
        self._attention_lengths = (key, views, zeros, tensors)
    for zero in zeros:
        zero.zero_()
    return views


PADDING = """\
self.token_to_block_idx[self.active_token_count : self.padded_active_token_count] = (
    self.kv_block_allocator.dummy_block_idx
)
self.token_to_local_position_within_kv_block[
    self.active_token_count : self.padded_active_token_count
] = 0
self.token_to_position_in_request[
    self.active_token_count : self.padded_active_token_count
] = 0
"""
PADDING_IF_ANY = "if self.active_token_count < self.padded_active_token_count:\n" + "".join(
    f"    {line}" for line in PADDING.splitlines(keepends=True)
)
SLICES = """\
query_lengths_view = self.request_query_lengths[active_slice]
request_kv_length_offsets_view = self.request_kv_length_offsets[active_slice]
"""
KEPT_SLICES = """\
lengths, kv_offsets, mha_lengths, cu_lengths, mha_kv_lengths, cu_kv_lengths = (
    self._attention_length_views()
)
"""
LENGTHS = "self._cpu_mha_query_lengths[:real_bs] = query_lengths_view[:real_bs]\n"
LENGTHS_IN_PLACE = "mha_lengths.copy_(lengths)\n"
SUMS = """\
self._cpu_mha_cu_query_seq_lengths[0] = 0
if real_bs > 0:
    self._cpu_mha_cu_query_seq_lengths[1 : real_bs + 1] = torch.cumsum(
        query_lengths_view[:real_bs], dim=0
    )
"""
SUMS_IN_PLACE = "torch.cumsum(lengths, dim=0, out=cu_lengths)\n"
KV_LENGTHS = """\
self._cpu_mha_kv_seq_lengths[:real_bs] = (
    request_kv_length_offsets_view[:real_bs] + query_lengths_view[:real_bs]
)
"""
KV_LENGTHS_IN_PLACE = "torch.add(kv_offsets, lengths, out=mha_kv_lengths)\n"
KV_SUMS = """\
self._cpu_mha_cu_kv_seq_lengths[0] = 0
if real_bs > 0:
    self._cpu_mha_cu_kv_seq_lengths[1 : real_bs + 1] = torch.cumsum(
        self._cpu_mha_kv_seq_lengths[:real_bs], dim=0
    )
"""
KV_SUMS_IN_PLACE = "torch.cumsum(mha_kv_lengths, dim=0, out=cu_kv_lengths)\n"


def _family(releases: str, digest: str) -> Family:
    hunks = (
        (PADDING, PADDING_IF_ANY),
        (SLICES, KEPT_SLICES),
        (LENGTHS, LENGTHS_IN_PLACE),
        (SUMS, SUMS_IN_PLACE),
        (KV_LENGTHS, KV_LENGTHS_IN_PLACE),
        (KV_SUMS, KV_SUMS_IN_PLACE),
    )
    edits = [Substitute(INITIALIZE, find, put, digest) for find, put in hunks]
    return Family(releases, (*edits, Add(HELPER, _attention_length_views)))


ATTENTION_LENGTH_VIEWS = Patch(
    id="attention-length-views",
    kind=Kind.PERFORMANCE,
    summary="Write attention's lengths without building slices, or padding nothing",
    symptom=(
        "`initialize_attention_state()` shows up in the host profile of every decode step, with "
        "thirty small operators for four tensors of lengths"
    ),
    outcome="the same values, from six operators where a batch stays as it is",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.18,<0.20",
    removal="upstream keeps the slices of the lengths, in all supported releases",
    updated="2026-11-25",
    target=TRANSFER,
    families=(
        _family("main at 342dd59a52 (#4306)", "940a7ccdadc8e0a4"),
        _family("0.18.0 to 0.18.2, and main at c817dad280", "ec37a9307653601d"),
        _family("main at 3a253ac5c2 (#4922)", "0571fe857390d929"),
        _family("0.19.0 to 0.19.2, and main at f41ec54958 (#5549)", "eba3165a92a53308"),
        _family("main at 3fd8f33076 (#5950)", "004ea7fdcf9406fc"),
        _family("main at 487bb39488 (#6481)", "4b5aa6b5be54ea86"),
        _family("main at 881f489fd4 (#6260)", "f00bc8407eb64e92"),
    ),
    upstreamed=(),
)
