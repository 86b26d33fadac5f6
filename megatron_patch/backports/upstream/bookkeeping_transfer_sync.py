"""Wait for the copy of the bookkeeping buffer before the host writes to it again (upstream #5715).

``DynamicInferenceContext.transfer_bookkeeping_to_gpu()`` copies one pinned host buffer to the GPU
without waiting. The next write to the buffer does not wait either, so a GPU that is behind gets
what belongs to the next step, or the -1 that ``reset()`` leaves, for token and block indices.

With this patch the copy blocks, as it does upstream. An event that the next writer waits for
would keep the overlap of host and GPU, and was not chosen:

- Eleven methods of the context and of its Mamba metadata write to the buffer or to a view of it
  (``add_request``, the two that add dummy requests, ``build_active_slices``, ``pad_active_slices``,
  ``initialize_attention_state``, ``update_requests``, ``reset_tensors``, ...), and so may callers.
  Each would have to wait, in each release.
- There is little to overlap. A step with requests has read its samples back before it prepares
  the next one, so the copy finds an idle stream, and what blocks is the copy itself. The steps
  that do not read back, and so the ones that lose the overlap, are those that go wrong: the
  warm-up of CUDA graphs and the dummy steps of expert parallelism, which call ``reset()`` with
  the GPU still at work.

Covered: whoever writes to the buffer, once the call has returned. Not covered: a thread that
writes during the call; other tensors that Megatron copies without waiting (the backup of the KV
cache of a suspended engine, inputs of the speculative heads), which nobody overwrites early. The
controller of these releases makes the transfer of each step twice, and both block.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

TRANSFER = (
    "megatron.core.inference.contexts.dynamic_context:"
    "DynamicInferenceContext.transfer_bookkeeping_to_gpu"
)

BOOKKEEPING_TRANSFER_SYNC = Patch(
    id="bookkeeping-transfer-sync",
    kind=Kind.CORRECTNESS,
    summary="Wait for the copy of the bookkeeping buffer before it is written to again",
    symptom=(
        "CUDA error: an illegal memory access was encountered, at a place that changes, most "
        "often during CUDA graph warm-up or in expert-parallel dummy steps; or, rarely, wrong "
        "tokens when the GPU is behind the host"
    ),
    outcome="the GPU reads what was there at the transfer, however late it is",
    upstream_pr=5715,
    upstream_commit="53a2dd56fec6bd0938bedf0207cce052944f3bcf",
    upstream_date="2026-07-15",
    fixed_in="0.19.0",
    releases=">=0.18,<0.19",
    removal="no supported release is older than 0.19.0",
    updated="2026-11-24",
    target=TRANSFER,
    variants=(Variant("0.18", HUNKS.of("0.18")),),
    told_by=(TRANSFER,),
)
