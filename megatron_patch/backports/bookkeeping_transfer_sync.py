"""Wait for the copy of the bookkeeping buffer before the host writes to it again (upstream #5715).

``DynamicInferenceContext.transfer_bookkeeping_to_gpu()`` copies one pinned host buffer to the GPU
without waiting. Who writes to the buffer next does not wait either, so a GPU that is behind gets
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

from ..model import Family, Kind, Known, Patch, Substitute

TRANSFER = (
    "megatron.core.inference.contexts.dynamic_context:"
    "DynamicInferenceContext.transfer_bookkeeping_to_gpu"
)

# Indented for its place in the method.
BLOCKING = """\
self.gpu_view._buf.copy_(
            # Blocking: nobody who writes to this pinned buffer next, be it reset() or the next
            # step, waits until the copy has read it.
            self._cpu_bookkeeping_buf,
            non_blocking=False,
        )"""


def _family(releases: str, digest: str) -> Family:
    asynchronous = "self.gpu_view._buf.copy_(self._cpu_bookkeeping_buf, non_blocking=True)"
    return Family(releases, (Substitute(TRANSFER, asynchronous, BLOCKING, digest),))


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
    families=(
        _family("main at 342dd59a52 (#4306)", "6976b61f7c6353b0"),
        _family("0.18.0 to 0.18.2, and main at 878228fd0f (#2456)", "c0c8d3d2a4fcb4e9"),
        _family("main at 3a253ac5c2 (#4922)", "b60dea74b294b357"),
    ),
    upstreamed=(
        Known(TRANSFER, "9083aad9b251d1cf", "0.19.0 and later"),
        Known(TRANSFER, "d4ea30b67bd95b42", "main at 53a2dd56fe (#5715)"),
    ),
)
