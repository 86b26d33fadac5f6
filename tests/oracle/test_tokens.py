"""Greedy tokens of the dynamic engine are those of ``transformers`` with the same weights."""

from __future__ import annotations

from typing import Any

import pytest

import megatron_patch
from megatron_patch import State, testing

pytest.importorskip("transformers", reason="needs transformers: tox run -f oracle")

from .pairs import PAIRS, PATCHES, Pair

REQUESTS = (
    testing.Request(prompt=tuple(range(1, 40)), num_tokens=24),
    testing.Request(prompt=(5, 6, 7, 8), num_tokens=24),
    testing.Request(prompt=tuple(n * 7 % 101 for n in range(100)), num_tokens=16, arrival_step=3),
    testing.Request(prompt=tuple(range(1, 40)), num_tokens=12, arrival_step=5),
)

ENGINES: dict[str, dict[str, Any]] = {
    "eager": {"max_tokens": 128},
    "padded for graphs": {"max_tokens": 128, "num_cuda_graphs": 4, "max_requests": 16},
    "prefix caching": {"max_tokens": 128, "enable_prefix_caching": True},
    "chunked prefill": {"max_tokens": 64, "enable_chunked_prefill": True},
}


def build(name: str, **fields: Any) -> tuple[Pair, Any]:
    try:
        pair = PAIRS[name]()
        return pair, pair.build_engine(**fields)
    except testing.UnsupportedError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", PAIRS)
def test_tokens_are_the_same(name, engine):
    pair, built = build(name, **ENGINES[engine])
    decoded = testing.decode(built, REQUESTS, capture_logits=False)
    assert decoded.tokens == tuple(map(pair.generate, REQUESTS))


@pytest.mark.parametrize("name", PATCHES)
def test_without_the_patches_they_are_not(unpatched, name):
    """This shows that a fault shows with these models and requests."""
    megatron_patch.install()
    states = {entry.id: entry.state for entry in megatron_patch.status()}
    if all(states[patch] is not State.APPLIED for patch in PATCHES[name]):
        pytest.skip("the release needs none of them")
    megatron_patch.uninstall()
    pair, built = build(name, **ENGINES["eager"])
    decoded = testing.decode(built, REQUESTS, capture_logits=False)
    assert decoded.tokens != tuple(map(pair.generate, REQUESTS))
