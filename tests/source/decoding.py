"""Decode the same requests in the ways that a release has.

As a program, it does so in a process of its own and writes what came out to a file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from megatron_patch import testing
from megatron_patch.source_tree import SourceTree

# They join and end at different steps; the second and the fourth begin with the same two blocks.
LONG = tuple(range(1, 40))
REQUESTS = (
    testing.Request(prompt=(5, 6, 7, 8), num_tokens=12),
    testing.Request(prompt=LONG, num_tokens=5),
    testing.Request(prompt=(9, 10), num_tokens=7, arrival_step=3),
    testing.Request(prompt=(*LONG[:33], 50), num_tokens=9, arrival_step=6),
)
MORE_THAN_A_STEP = testing.Request(prompt=tuple(range(1, 101)), num_tokens=6, arrival_step=1)

# Fields of the engine, and whether it is suspended and resumed on the way.
WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "eager": ({}, False),
    "padded": ({"num_cuda_graphs": 1}, False),
    "chunked": ({"enable_chunked_prefill": True}, False),
    "prefix cache": ({"enable_prefix_caching": True}, False),
    "speculative": (
        {"num_speculative_tokens": 2, "materialize_only_last_token_logits": False},
        False,
    ),
    "suspended": ({}, True),
    **{
        f"suspended, {mode}": ({"kv_cache_management_mode": mode}, True)
        for mode in ("persist", "offload", "recompute")
    },
}


def _suspending(engine: Any, step: int) -> None:
    if step in (2, 5, 8):
        testing.suspend(engine)
        testing.resume(engine)


def requests_of(way: str) -> tuple[testing.Request, ...]:
    """The requests that are decoded in this way; with chunks, also a prompt that is split."""
    return (*REQUESTS, MORE_THAN_A_STEP) if way == "chunked" else REQUESTS


def decode(way: str) -> dict[str, Any] | None:
    """Tokens and logits; ``None`` if the release cannot decode in this way."""
    fields, suspended = WAYS[way]
    try:
        engine = testing.build_engine(testing.EngineSpec(**fields))
        on_step = _suspending if suspended else None
        decoded = testing.decode(engine, requests_of(way), on_step=on_step)
    except testing.UnsupportedError:
        return None
    return {"tokens": decoded.tokens, "logits": decoded.logits}


def everything() -> dict[str, Any]:
    """What this process has decoded, and from which tree."""
    return {
        "decoded": {way: decode(way) for way in WAYS},
        "root": str(SourceTree.installed().root),
    }


if __name__ == "__main__":
    testing.start()
    torch.save(everything(), Path(sys.argv[1]))
