"""Fill the pool of free KV blocks again in every reset, in place (upstream PRs #2584, #6091).

The pool is a stack of block ids. Two defects of the allocator's ``reset()``:

- Up to 0.15.3 it only sets the number of free blocks back. Blocks return to the stack over the
  entries of others that are still in use, so that with live requests some ids are in it twice and
  others not at all. After the reset two requests get the same block and write over each other's
  keys and values: wrong text, without an error (#2584).
- From 0.16.0 on it makes a new tensor. Under ``torch.inference_mode()``, where 0.18 and 0.19 reset
  after each CUDA graph that they capture, that is an inference tensor, and returning or evicting
  blocks outside of that mode raises (#6091). The pool of Mamba states for prefix caching has the
  same defect; its blocks are returned by the same calls.

What differs from upstream: 0.14 and 0.15 get the filling in place of #6091 and not the new tensor
of #2584, which has the second defect. And a pool that is an inference tensor already, because a
reset before the patch was applied has left it so, is exchanged: upstream's ``arange(out=...)``
would raise on it where the reset without any patch does not.

Not covered: a pool that is wrong already when the patch is applied, until the next reset; the rest
of #6091, on running out of Mamba states; and ``MambaMetadata.reset()``, which makes a new tensor
too (upstream #6584).
"""

from __future__ import annotations

from ..model import Family, Kind, Known, Patch, Substitute

CONTEXTS = "megatron.core.inference.contexts"
CHUNKS = f"{CONTEXTS}.dynamic_chunk_allocator:ChunkAllocator.reset"
BLOCKS = f"{CONTEXTS}.dynamic_block_allocator:BlockAllocator.reset"
KV_BLOCKS = f"{CONTEXTS}.kv_block_allocator:KVBlockAllocator.reset"
MAMBA_SLOTS = f"{CONTEXTS}.mamba_slot_allocator:MambaSlotAllocator.reset"


def _fill(pool: str, count: str) -> str:
    return f"""
# In place: a tensor that is made under inference mode cannot be written outside of it. A
# pool that was made there is exchanged.
if self.{pool}.is_inference():
    with torch.inference_mode(False):
        self.{pool} = torch.empty_like(self.{pool})
torch.arange(self.{count}, out=self.{pool})
"""


def _filled(target: str, what: str, digest: str) -> Substitute:
    """0.14 and 0.15, which do not fill the pool; 0.14 says chunk for block."""
    set_count = f"self.{what}_count_avail = self.{what}_count_total - 1"
    why = f"# {what.capitalize()}s return over the entries of others: some may be there twice now."
    fill = _fill(f"{what}_bag", f"{what}_count_total")
    return Substitute(target, set_count, why + fill + "\n" + set_count, digest)


def _in_place(target: str, pool: str, count: str, device: str, digest: str) -> Substitute:
    """0.16 and later, which make a new tensor."""
    new = f"self.{pool} = torch.arange(self.{count}, dtype=torch.int32, device={device})"
    return Substitute(target, new, _fill(pool, count), digest)


CURRENT = "torch.cuda.current_device()"

BLOCK_ALLOCATOR_RESET = Patch(
    id="block-allocator-reset",
    kind=Kind.CORRECTNESS,
    summary="Fill the pool of free KV blocks in every reset, in place (#2584 and #6091)",
    symptom=(
        "0.14 and 0.15: after engine.reset() or context.reset() with requests in flight, requests "
        "answer with text of others. 0.16 to 0.19: RuntimeError: Inplace update to inference "
        "tensor outside InferenceMode is not allowed, from the allocator of KV blocks, after a "
        "reset under torch.inference_mode() such as that of CUDA graph warm-up"
    ),
    outcome="after a reset each block is handed out once, in and outside of inference mode",
    upstream_pr=6091,
    upstream_commit="d04e7a0ba77d5ee14a7584d22379579fac94fb66",
    upstream_date="2026-07-30",
    fixed_in="0.20.0",
    releases=">=0.14,<0.20",
    removal="no supported release is older than 0.20.0",
    updated="2026-11-24",
    target=f"{CONTEXTS}.dynamic_context:DynamicInferenceContext.reset",
    families=(
        Family("0.14.0", (_filled(CHUNKS, "chunk", "9ae97e63a7ba3115"),)),
        Family("0.15.0 to 0.15.3", (_filled(BLOCKS, "block", "8090bd64bc8fab06"),)),
        Family(
            "0.16.0 and 0.16.1",
            (_in_place(BLOCKS, "block_bag", "total_count", CURRENT, "a0f196986cfc3ace"),),
        ),
        Family(
            "0.17.0 and 0.17.1",
            (
                _in_place(KV_BLOCKS, "block_bag", "total_count", CURRENT, "e564449e5a4193a5"),
                _in_place(MAMBA_SLOTS, "free_slots", "max_slots", CURRENT, "2dc66a7392644333"),
            ),
        ),
        *(
            Family(
                releases,
                (
                    _in_place(KV_BLOCKS, "block_bag", "total_count", "'cpu'", digest),
                    _in_place(MAMBA_SLOTS, "free_slots", "max_slots", "'cpu'", "999a01bcfe7c01b7"),
                ),
            )
            for releases, digest in (
                ("0.18.0 to 0.18.2, and main between #4306 and #5822", "676d147dd9be91e0"),
                ("0.19.0 to 0.19.2, and main between #5822 and #6091", "bc23b8faff27a1cc"),
            )
        ),
    ),
    upstreamed=(
        Known(KV_BLOCKS, "c338b7a9fa164f86", "main with #6091"),
        Known(KV_BLOCKS, "1dd5cca8ce2b0131", "main with #5995"),
    ),
)
