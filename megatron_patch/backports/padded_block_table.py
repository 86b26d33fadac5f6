"""No negative index in the block table that attention gets (upstream #5950 in part, and #6481).

The context's own table marks unused entries with -1. Attention got them as they are: in the rows
behind the real ones, when a batch is padded to the size of a CUDA graph or of a rounded batch, and
in the columns behind the last block of each real row. A kernel that reads ahead of a row's length
takes -1 for an address in front of the KV cache.

With this patch attention sees the dummy block in their place, which exists to take what padding
writes. Nothing else changes: real entries stay, and so does the context's own table, whose -1
other code looks for. Attention only reads through the block table. What padding writes goes
through ``token_to_block_idx``, which points to the dummy block for it in all these releases.

What differs from upstream: since 0.18 the table is made on the host in each step, where
upstream's ``masked_fill_()`` takes twelve times as long as the copy before it (80 us of one core
for a table of 128 x 256). The arithmetic here has the same result, in a quarter of that time. In
0.16 and 0.17, for which upstream has no fix, the table is on the GPU: one kernel more for the real
rows, and in return the -1 of the padding is not built on the host and copied to the GPU in each
step any more. The number that takes its place is an argument of the kernel that fills.

Not covered: 0.14 and 0.15. Their padding rows hold block 0 or the blocks of earlier steps, no row
is all -1. Entries behind the last block of a row are -1 there too.
"""

from __future__ import annotations

from ..model import Family, Kind, Known, Patch, Substitute

MODULE = "megatron.core.inference.contexts"
METADATA = f"{MODULE}.attention_context.mha_metadata:MHAMetadata"
INITIALIZE = f"{MODULE}.dynamic_context:DynamicInferenceContext.initialize_attention_state"

# The comment on the table is between the two statements, and would not be true any more.
CU_KV_LENGTHS = """\
if real_bs < padded_bs:
    self._cpu_mha_cu_kv_seq_lengths[real_bs + 1 : padded_bs + 1] = (
        self._cpu_mha_cu_kv_seq_lengths[real_bs]
    )
"""
COPY = """\
self._cpu_mha_block_table[:real_bs] = request_to_kv_block_ids_view[:real_bs]
if real_bs < padded_bs:
    self._cpu_mha_block_table[real_bs:padded_bs] = {padding}
"""
WITH_DUMMY_BLOCK = """\

# Block table: the dummy block stands for the unused entries of real rows, which are -1 in
# `request_to_kv_block_ids`, and in padded rows. Kernels may read through them, if only to
# drop the result. `x - min(x, 0) * (dummy + 1)` is `dummy` where `x` is -1, and `x`
# elsewhere, and several times faster than masked_fill_().
dummy_block_idx = self.kv_block_allocator.dummy_block_idx
block_ids = request_to_kv_block_ids_view[:real_bs]
torch.sub(
    block_ids,
    block_ids.clamp(max=0),
    alpha=dummy_block_idx + 1,
    out=self._cpu_mha_block_table[:real_bs],
)
if real_bs < padded_bs:
    self._cpu_mha_block_table[real_bs:padded_bs] = dummy_block_idx
"""

PAD_ON_GPU = """\
self.tensor_copy_and_pad(
    self._block_table_buf,
    request_to_kv_block_ids,
    real_batch_size,
    padded_active_request_count,
    pad_value=torch.tensor(self.max_kv_blocks, dtype=torch.int32, device=self.device).fill_(-1),
)
"""
PAD_ON_GPU_WITH_DUMMY_BLOCK = """\
# The dummy block, the last one, stands for the unused entries of real rows, which are -1,
# and in padded rows. Kernels may read through them, if only to drop the result.
block_ids = request_to_kv_block_ids % self.max_blocks  # -1 is the last block
self.tensor_copy_and_pad(
    self._block_table_buf,
    block_ids,
    real_batch_size,
    padded_active_request_count,
    pad_value=self.max_blocks - 1,
)
"""


def _on_gpu(releases: str, digest: str) -> Family:
    edit = Substitute(f"{METADATA}.update", PAD_ON_GPU, PAD_ON_GPU_WITH_DUMMY_BLOCK, digest)
    return Family(releases, (edit,))


def _on_host(releases: str, digest: str, padding: str = "-1") -> Family:
    find = CU_KV_LENGTHS + COPY.format(padding=padding)
    return Family(
        releases, (Substitute(INITIALIZE, find, CU_KV_LENGTHS + WITH_DUMMY_BLOCK, digest),)
    )


PADDED_BLOCK_TABLE = Patch(
    id="padded-block-table",
    kind=Kind.CORRECTNESS,
    summary="Give attention the dummy block in place of -1 in unused block table entries",
    symptom=(
        "attention reads in front of the KV cache, with CUDA error: an illegal memory access was "
        "encountered where nothing is mapped there, in decode steps with CUDA graphs, when the "
        "batch is smaller than the graph or requests have fewer blocks than the longest sequence"
    ),
    outcome="no index below 0 reaches attention, and tokens and logits stay the same",
    upstream_pr=6481,
    upstream_commit="487bb39488810d6e44a7b3540be42dabae793be0",
    upstream_date="2026-08-13",
    fixed_in="0.20.0",
    releases=">=0.16,<0.20",
    removal="no supported release is older than 0.20.0",
    updated="2026-11-24",
    target=INITIALIZE,
    families=(
        _on_gpu("0.16.0 and 0.16.1", "e60188e518b48146"),
        _on_gpu("0.17.0 and 0.17.1", "ee8577e2507cdc4e"),
        _on_host("main at 342dd59a52 (#4306)", "940a7ccdadc8e0a4"),
        _on_host("0.18.0 to 0.18.2, and main at c817dad280", "ec37a9307653601d"),
        _on_host("main at 3a253ac5c2 (#4922)", "0571fe857390d929"),
        _on_host("0.19.0 to 0.19.2, and main at f41ec54958 (#5549)", "eba3165a92a53308"),
        # The padded rows have the dummy block there.
        _on_host(
            "main at 3fd8f33076 (#5950)",
            "004ea7fdcf9406fc",
            padding="self.kv_block_allocator.dummy_block_idx",
        ),
    ),
    upstreamed=(
        Known(INITIALIZE, "f00bc8407eb64e92", "main at 881f489fd4 (#6260)"),
        Known(INITIALIZE, "4b5aa6b5be54ea86", "main at 487bb39488 (#6481)"),
    ),
    unaffected=(
        Known(INITIALIZE, "72d6c0809d2c7737", "0.14.0"),
        Known(INITIALIZE, "7a7cfcc208c7b4f9", "0.15.0 to 0.15.3"),
    ),
)
