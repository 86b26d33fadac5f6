"""Multi-latent attention in the dynamic engine, on whichever release is installed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from megatron_patch import testing
from megatron_patch.backports.upstream.latent_cache_decode_flag import LATENT_CACHE_DECODE_FLAG
from megatron_patch.testing.releases import context_parameters, engine_class, parameters_of

from .checks import REQUESTS, assert_state_of_record, needs, proof

pytestmark = pytest.mark.usefixtures("device")

SPEC = testing.EngineSpec(kv_lora_rank=32, position_embedding_type="rope", block_size_tokens=64)

ONE_TOKEN = testing.Request((9,), 6)


def decoded(requests: Sequence[testing.Request], **fields: Any) -> list[tuple[int, ...]]:
    engine = testing.build_engine(dataclasses.replace(SPEC, **fields))
    return [tuple(tokens) for tokens in testing.decode(engine, requests).tokens]


def alone(requests: Sequence[testing.Request]) -> list[tuple[int, ...]]:
    """The tokens of a model that caches nothing."""
    model = testing.build_model(dataclasses.replace(SPEC, cache_mla_latents=False))
    return [tuple(tokens) for tokens in testing.reference_decode(model, requests)]


def test_state():
    engine_class()
    assert_state_of_record(LATENT_CACHE_DECODE_FLAG)


@proof
@pytest.mark.parametrize("graphs", [None, 2], ids=["eager", "padded"])
def test_the_tokens_are_those_of_the_model(graphs):
    assert decoded(REQUESTS, num_cuda_graphs=graphs, max_requests=16) == alone(REQUESTS)


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param([ONE_TOKEN], id="alone"),
        pytest.param([ONE_TOKEN, testing.Request((4,), 3)], id="both"),
        pytest.param([REQUESTS[0], dataclasses.replace(ONE_TOKEN, arrival_step=3)], id="later"),
        pytest.param([ONE_TOKEN, REQUESTS[1]], id="with a long one"),
    ],
)
def test_prompts_of_one_token(requests):
    assert decoded(requests) == alone(requests)


def test_a_prompt_in_chunks():
    options = {*parameters_of(engine_class()), *context_parameters()}
    needs("enable_chunked_prefill" in options, "chunked prefill")
    requests = [REQUESTS[0], testing.Request(tuple(range(1, 101)), 6, arrival_step=1)]
    assert decoded(requests, enable_chunked_prefill=True) == alone(requests)


def test_sequences_of_several_blocks():
    requests = [testing.Request(tuple(range(1, 60)), 30), testing.Request((3, 1, 4), 70)]
    assert decoded(requests) == alone(requests)
