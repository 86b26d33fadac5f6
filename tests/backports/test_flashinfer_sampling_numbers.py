"""What flashinfer samples in CUDA graphs, on whichever release is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from megatron_patch import testing
from megatron_patch.backports.upstream.flashinfer_sampling_numbers import (
    FLASHINFER_SAMPLING_NUMBERS,
)
from megatron_patch.testing import graph_counts, module_standins

from . import flashinfer_kernels
from .checks import assert_state_of_record, needs, proof

MODULE = "megatron.core.inference.sampling.flashinfer_sampling"

#: So hot that each token is as likely as any other, and each draw tells.
HOT = {"temperature": 1e6, "top_k": 0, "top_p": 0.0}
REQUESTS = [testing.Request((5, 6, 7 + i), 24, sampling=HOT) for i in range(3)]


def is_there() -> bool:
    """Whether the release samples with flashinfer."""
    package = MODULE.rpartition(".")[0]
    return find_spec(package) is not None and find_spec(MODULE) is not None


@pytest.fixture
def flashinfer(device: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """flashinfer's kernels or the stand-ins, and no CUDA graph of another test."""
    testing.context_class()
    needs(is_there(), "flashinfer")
    kernels = flashinfer_kernels.module(device)
    monkeypatch.setattr(importlib.import_module(MODULE), "flashinfer", kernels)
    testing.drop_cuda_graphs()
    with module_standins.importable({"flashinfer": kernels}):
        yield
    testing.drop_cuda_graphs()


def spec_of(**fields: Any) -> testing.EngineSpec:
    fields = {"num_cuda_graphs": 2, "max_requests": 16, "cuda_graph_scope": "layer", **fields}
    return testing.EngineSpec(options={"sampling_backend": "flashinfer"}, **fields)


def test_state(device):
    testing.context_class()
    if is_there():
        importlib.import_module(MODULE)
    assert_state_of_record(FLASHINFER_SAMPLING_NUMBERS)


@proof
def test_each_step_draws_other_numbers(flashinfer):
    engine = testing.build_engine(spec_of())
    with graph_counts.counted() as count:
        decoded = testing.decode(engine, REQUESTS, capture_logits=False)
    assert count.replays
    for tokens in decoded.tokens:
        # Of 128 tokens 24 are drawn: more than 16 other ones in all but one of 10 million cases.
        assert len({*tokens}) > 16


@proof
def test_a_batch_that_comes_again_gets_other_tokens(flashinfer):
    engine = testing.build_engine(spec_of())
    first, second = (
        testing.decode(engine, REQUESTS, capture_logits=False).tokens for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 8


def test_without_graphs_the_same_seed_draws_the_same(flashinfer):
    def run() -> Any:
        spec = spec_of(num_cuda_graphs=None, cuda_graph_scope=None)
        return testing.decode(testing.build_engine(spec), REQUESTS, capture_logits=False).tokens

    assert run() == run()
