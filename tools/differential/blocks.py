"""Accounts of KV blocks: who holds which, and how many are free."""

from __future__ import annotations

from collections import Counter
from typing import Any


def allocator(context: Any) -> Any:
    """The allocator of KV blocks. 0.14 calls them chunks."""
    names = ("kv_block_allocator", "block_allocator", "chunk_allocator")
    return next(getattr(context, name) for name in names if hasattr(context, name))


def free(context: Any) -> int:
    """Blocks that a request can get: those in the pool, and those cached for nobody."""
    blocks = allocator(context)
    names = ("pool_avail", "total_avail", "block_count_avail", "chunk_count_avail")
    pool = next(getattr(blocks, name) for name in names if hasattr(blocks, name))
    return int(pool) + cached(context)


def limits(context: Any) -> dict[str, int]:
    """What a request that is alone can have: tokens in a step, blocks for its prompt and to grow.

    Before 0.16 some blocks are set aside, so that one request can always go on; a prompt gets none
    of these.
    """
    blocks, found = allocator(context), {"tokens of a step": int(context.max_tokens)}
    if hasattr(blocks, "active_count"):
        total, growth = int(blocks.total_count) - 1, int(blocks.active_count)
        return {**found, "blocks of a prompt": total, "blocks to grow": growth}
    name = "block" if hasattr(blocks, "block_count_total") else "chunk"
    total = int(getattr(blocks, f"{name}_count_total")) - 1  # one is for padding
    aside = int(getattr(blocks, f"gtd_{name}_count"))
    return {**found, "blocks of a prompt": total - aside, "blocks to grow": total}


def cached(context: Any) -> int:
    """Blocks that are cached and that nobody holds."""
    if not getattr(context, "enable_prefix_caching", False):
        return 0
    blocks = allocator(context)
    return int(((blocks.block_ref_counts == 0) & (blocks.block_hashes != -1)).sum())


def held(context: Any) -> list[list[int]]:
    """The blocks of each request."""
    name = "request_to_kv_block_ids"
    table = getattr(context, name if hasattr(context, name) else name.replace("block", "chunk"))
    rows = table[: context.total_request_count].tolist()
    chunked = getattr(context, "chunked_prefill_request_id", -1)
    if chunked != -1:
        # From 0.17 on such a request, whose prompt is not complete, is not in total_request_count
        # between steps.
        (found,) = (context.request_ids == chunked).nonzero(as_tuple=True)
        rows += [table[index].tolist() for index in found[:1] if index >= len(rows)]
    return [[block for block in row if block != -1] for row in rows]


def tables(context: Any) -> list[list[int]]:
    """The table of blocks of each request in the next forward pass; -1 where there is none."""
    name = "request_to_kv_block_ids"
    found = getattr(context, name if hasattr(context, name) else name.replace("block", "chunk"))
    rows: list[list[int]] = found[
        context.paused_request_count : context.total_request_count
    ].tolist()
    return rows


def astray(context: Any, size: int) -> list[tuple[int, int, int]]:
    """Tokens of the next forward pass whose keys and values go elsewhere than their request's table
    says: the row, the position in the request and the block. ``size``: tokens of a block.

    Where a token stands in its request is counted here: the position that the model is given may
    be another one, such as the last that it has, for a draft behind the longest sequence.
    """
    rows, first, found = tables(context), context.paused_request_count, []
    name = "token_to_block_idx"
    goes = getattr(context, name if hasattr(context, name) else name.replace("block", "chunk"))
    tokens = slice(0, context.active_token_count)
    following = context.request_kv_length_offsets[first : context.total_request_count].tolist()
    for number, block in zip(
        context.token_to_request_idx[tokens].tolist(), goes[tokens].tolist(), strict=True
    ):
        row = number - first
        position = following[row]
        following[row] += 1
        if rows[row][position // size] != block:
            found.append((row, position, block))
    return found


def inconsistencies(context: Any) -> list[str]:
    """A line for each block that a request holds twice, or two without a common prefix hold."""
    found = []
    rows = held(context)
    for row in rows:
        if len(set(row)) < len(row):
            found.append(f"a request holds a block twice: {row}")
    counts = Counter(block for row in rows for block in row)
    if not getattr(context, "enable_prefix_caching", False):
        shared = sorted(block for block, count in counts.items() if count > 1)
        if shared:
            found.append(f"blocks {shared} are held by several requests")
        return found
    for block, count in enumerate(allocator(context).block_ref_counts.tolist()):
        if count != counts[block]:
            found.append(f"block {block} has the reference count {count}, not {counts[block]}")
    return found
