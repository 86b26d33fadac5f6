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

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

MODULE = "megatron.core.inference.contexts"

INITIALIZE = f"{MODULE}.dynamic_context:DynamicInferenceContext.initialize_attention_state"

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
    variants=(
        Variant("0.16", HUNKS.of("0.16")),
        Variant("0.18", HUNKS.of("0.18")),
        Variant("main-3fd8f33076", HUNKS.of("main-3fd8f33076")),
    ),
    told_by=(INITIALIZE,),
)
