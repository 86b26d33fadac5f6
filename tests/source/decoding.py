"""Decode the same requests in the ways that a release has.

As a program, it does so in a process of its own and writes what came out to a file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType
from typing import Any

import torch

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports import SERIES
from megatron_patch.compilation import functions_below
from megatron_patch.edits import Add
from megatron_patch.source_tree import SourceTree

from ..mamba import import_all

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


def code_of_targets() -> dict[str, str]:
    """What runs for each function that some variant edits or adds: its code, less its place.

    Of those that are added, names and constants: the compiler has several ways to call a function
    of an imported module, and takes one where it sees the import.
    """
    edits = [edit for patch in SERIES for variant in patch.variants for edit in variant.edits]
    added = {edit.target for edit in edits if isinstance(edit, Add)}
    found = {}
    for target in sorted({edit.target for edit in edits}):
        module, qualname = target.split(":")
        value: Any = sys.modules.get(module)
        for name in qualname.split("."):
            value = getattr(value, "__dict__", {}).get(name)
        codes = [function.__code__ for function in functions_below(value)]
        if codes:
            found[target] = str([without_place(code, target in added) for code in codes])
    return found


def without_place(code: CodeType, is_added: bool) -> tuple[Any, ...]:
    """All parts of a code object that decide what it does."""
    constants = [
        without_place(constant, is_added) if isinstance(constant, CodeType) else constant
        for constant in code.co_consts
    ]
    names = (code.co_name, sorted(code.co_names), code.co_varnames)
    shared = (code.co_cellvars, code.co_freevars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    flags = code.co_flags & 0xFFFF  # above are those of `from __future__`
    return (b"" if is_added else code.co_code, constants, names, shared, counts, flags)


def import_targets(tree: SourceTree) -> None:
    """Import all that is edited: decoding leaves the HTTP server out."""
    modules = {
        edit.target.partition(":")[0] for p in SERIES for v in p.variants for edit in v.edits
    }
    import_all(module for module in modules if tree.path(module) is not None)


def everything() -> dict[str, Any]:
    """What this process has decoded, from which tree, and the state and code of each patch."""
    tree = SourceTree.installed()
    import_targets(tree)
    return {
        "code": code_of_targets(),
        "decoded": {way: decode(way) for way in WAYS},
        "root": str(tree.root),
        "states": {entry.id: str(entry.state) for entry in megatron_patch.status()},
    }


if __name__ == "__main__":
    testing.start()
    torch.save(everything(), Path(sys.argv[1]))
