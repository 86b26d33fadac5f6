"""Greedy tokens of the dynamic engine are those of ``transformers`` with the same weights."""

from __future__ import annotations

import functools
from typing import Any

import pytest

import megatron_patch
from megatron_patch import State, testing

pytest.importorskip("transformers", reason="needs transformers: pip install '.[oracle]'")

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


@functools.cache
def pair_of(name: str) -> Pair:
    return PAIRS[name]()


def build(name: str, **fields: Any) -> Any:
    """Megatron's engine with the weights of the pair."""
    try:
        return pair_of(name).build_engine(**fields)
    except testing.UnsupportedError as error:
        pytest.skip(str(error))


@functools.cache
def generated(name: str) -> tuple[tuple[int, ...], ...]:
    """What ``transformers`` generates for the requests."""
    return tuple(map(pair_of(name).generate, REQUESTS))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", PAIRS)
def test_tokens_are_the_same(name, engine):
    decoded = testing.decode(build(name, **ENGINES[engine]), REQUESTS, capture_logits=False)
    assert decoded.tokens == generated(name)


@pytest.mark.parametrize("name", PATCHES)
def test_without_the_patches_they_are_not(unpatched, name):
    """This shows that a fault shows with these models and requests."""
    megatron_patch.install()
    states = {entry.id: entry.state for entry in megatron_patch.status()}
    if all(states[patch] is not State.APPLIED for patch in PATCHES[name]):
        pytest.skip("the release needs none of them")
    megatron_patch.uninstall()
    decoded = testing.decode(build(name, **ENGINES["eager"]), REQUESTS, capture_logits=False)
    assert decoded.tokens != generated(name)
