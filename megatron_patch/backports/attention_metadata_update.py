"""Fill the metadata of attention with the operators that it takes (a change of ours).

In 0.16 and 0.17 the lengths and the block table that attention reads are on the GPU, and
``MHAMetadata.update()`` fills them in each decode step with sixteen operators, among them
copies of what could have been written to its place, and fills of no rows where a batch has the size
of its graph. ``reset()`` writes zeros to all of it, for the metadata with and without CUDA graphs,
ten operators a step. On the host each is a launch.

With this patch sums are written to where they belong, padding is written where there is any, and
``reset()`` leaves the buffers: nothing reads them before the next ``update()``, which writes each
row that it shows. Each row has the values that it had.

Not covered: 0.14 and 0.15, whose ``update()`` is another one, and 0.18 and later, which fill the
metadata on the host.
"""

from __future__ import annotations

from ..model import Family, Kind, Known, Patch, Substitute

MODULE = "megatron.core.inference.contexts.attention_context"
UPDATE = f"{MODULE}.mha_metadata:MHAMetadata.update"
RESET = f"{MODULE}.mha_metadata:MHAMetadata.reset"
#: What calls `reset()` is there in all releases.
TARGET = (
    "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext.reset_attention_state"
)
#: It takes what was filled on the host, since #4306.
ON_HOST = f"{MODULE}.mha_metadata:MHAMetadata.set_state_data"
PAD = f"{MODULE}.metadata_base:MetadataBase.tensor_copy_and_pad"

CU_QUERY = """\
self._cu_query_seq_lengths_buf[0] = 0
self.tensor_copy_and_pad(
    self._cu_query_seq_lengths_buf[1:],
    torch.cumsum(request_query_lengths, dim=0),
    real_batch_size,
    padded_active_request_count,
    is_cumulative_tensor=True,
)
self.tensor_copy_and_pad(
    self._kv_seq_lengths_buf,
    request_kv_length_offsets + request_query_lengths,
    real_batch_size,
    padded_active_request_count,
)
"""
CU_QUERY_IN_PLACE = """\
# The first entry of either sum is 0 from the beginning, and stays it.
cu_query_lengths = self._cu_query_seq_lengths_buf[: padded_active_request_count + 1]
kv_lengths = self._kv_seq_lengths_buf[:padded_active_request_count]
cu_kv_lengths = self._cu_kv_seq_lengths_buf[: padded_active_request_count + 1]
torch.cumsum(
    request_query_lengths,
    dim=0,
    dtype=torch.int32,
    out=cu_query_lengths[1 : real_batch_size + 1],
)
torch.add(
    request_kv_length_offsets, request_query_lengths, out=kv_lengths[:real_batch_size]
)
"""
CU_KV = """\
self._cu_kv_seq_lengths_buf[0] = 0
self.tensor_copy_and_pad(
    self._cu_kv_seq_lengths_buf[1:],
    torch.cumsum(self._kv_seq_lengths_buf, dim=0),
    real_batch_size,
    padded_active_request_count,
    is_cumulative_tensor=True,
)
"""
CU_KV_IN_PLACE = """\
torch.cumsum(
    kv_lengths[:real_batch_size],
    dim=0,
    dtype=torch.int32,
    out=cu_kv_lengths[1 : real_batch_size + 1],
)
if real_batch_size < padded_active_request_count:
    kv_lengths[real_batch_size:] = 0
    cu_query_lengths[real_batch_size + 1 :] = cu_query_lengths[real_batch_size]
    cu_kv_lengths[real_batch_size + 1 :] = cu_kv_lengths[real_batch_size]
"""

ZEROS = """\
self._query_lengths_buf.fill_(0)
self._cu_query_seq_lengths_buf.fill_(0)
self._cu_kv_seq_lengths_buf.fill_(0)
self._kv_seq_lengths_buf.fill_(0)
self._block_table_buf.fill_(0)
self._max_seqlen_q = 0
"""
NO_ZEROS = """\
# The buffers stay as they are: the next update() writes each row that it shows.
self._max_seqlen_q = 0
"""

PADDING = "tensor_buf[real_batch_size:padded_batch_size] = value\n"
SOME_PADDING = """\
if real_batch_size < padded_batch_size:
    tensor_buf[real_batch_size:padded_batch_size] = value
"""


def _family(releases: str, update: str) -> Family:
    return Family(
        releases,
        (
            Substitute(UPDATE, CU_QUERY, CU_QUERY_IN_PLACE, update),
            Substitute(UPDATE, CU_KV, CU_KV_IN_PLACE, update),
            Substitute(RESET, ZEROS, NO_ZEROS, "24572afc7f61fcc4"),
            Substitute(PAD, PADDING, SOME_PADDING, "62e600b345e0cf2a"),
        ),
    )


ATTENTION_METADATA_UPDATE = Patch(
    id="attention-metadata-update",
    kind=Kind.PERFORMANCE,
    summary="Fill the metadata of attention with 6 operators in place of 26",
    symptom=(
        "`MHAMetadata.update()`, `MHAMetadata.reset()` and `tensor_copy_and_pad()` show up in the "
        "host profile of every decode step, with 26 small operators"
    ),
    outcome="the same values, from 6 operators where a batch has the size of its graph",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16,<0.18",
    removal="no supported release is older than 0.18.0",
    updated="2026-11-24",
    target=TARGET,
    families=(
        _family("0.16.0 and 0.16.1, and main at 0819f3c5fe (#2380)", "e60188e518b48146"),
        _family("0.17.0 and 0.17.1, and main at 8f539df740 (#3594)", "ee8577e2507cdc4e"),
    ),
    upstreamed=(),
    unaffected=(
        Known(TARGET, "c92dade32815ce16", "0.14.0"),
        Known(TARGET, "0a077f3c49572671", "0.15.0 to 0.15.3"),
        Known(ON_HOST, "ab5e9e5672fc8599", "0.18.0 to 0.19.2"),
    ),
)
