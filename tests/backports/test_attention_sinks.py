"""Attention sinks in dynamic inference, on whichever release is installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_patch import testing
from megatron_patch.backports.upstream.attention_sinks import ATTENTION_SINKS
from megatron_patch.testing import graph_counts

from . import attending
from .checks import assert_state_of_record, needs, proof

pytestmark = pytest.mark.usefixtures("device")

SINKS = ("off-by-one", "learnable")

#: Its sinks, and what the attention has beside.
GPT_OSS: dict[str, Any] = {
    "softmax_type": "learnable",
    "num_layers": 4,
    "num_query_groups": 2,
    "window_size": (8, 0),
    "window_attn_skip_freq": 2,
    "position_embedding_type": "yarn",
    "yarn": {"rotary_scaling_factor": 32.0, "correction_range_round_to_int": False},
}


def test_state(device):
    attending.attention()
    assert_state_of_record(ATTENTION_SINKS)


@proof
@pytest.mark.parametrize("softmax_type", SINKS)
@pytest.mark.parametrize("engine", attending.ENGINES)
def test_in_all_kinds_of_steps(engine, softmax_type):
    attending.check({"softmax_type": softmax_type}, engine)


@proof
@pytest.mark.parametrize("softmax_type", SINKS)
@pytest.mark.parametrize("generation", attending.GENERATIONS)
def test_with_each_flash_attn(monkeypatch, generation, softmax_type):
    attending.use_generation(monkeypatch, generation)
    if generation == "4":
        # Upstream's own sinks do not ask flash-attn 4 for the sums that they need.
        upstreams = hasattr(attending.attention().Attention, "_get_inference_softmax_offset")
        needs(not upstreams, "sinks with flash-attn 4")
    attending.check({"softmax_type": softmax_type})
    attending.check({"softmax_type": softmax_type}, "padded for graphs")


@pytest.mark.parametrize("engine", attending.ENGINES)
def test_with_all_else_that_gpt_oss_has(engine):
    attending.check(GPT_OSS, engine)


@pytest.fixture
def no_other_graphs() -> Iterator[None]:
    testing.drop_cuda_graphs()
    yield
    testing.drop_cuda_graphs()


@pytest.mark.parametrize("scope", ["layer", "block"])
@pytest.mark.parametrize("for_prefill", [False, True], ids=["decode", "prefill"])
def test_in_cuda_graphs(no_other_graphs, for_prefill, scope):
    spec = testing.EngineSpec(
        **GPT_OSS,
        softmax_scale=0.2,
        num_cuda_graphs=2,
        max_requests=16,
        max_sequence_length=64,
        cuda_graph_scope=scope,
        options={"use_cuda_graphs_for_non_decode_steps": True} if for_prefill else {},
    )
    without = replace(spec, num_cuda_graphs=None, cuda_graph_scope=None, options={})
    try:
        model = testing.build_model(without)
        engine = testing.build_engine(spec)
    except testing.UnsupportedError as error:
        pytest.skip(str(error))
    for _ in range(2):
        with graph_counts.counted() as count:
            decoded = testing.decode(engine, attending.REQUESTS, capture_logits=False)
        expected = testing.reference_decode(model, attending.REQUESTS, decoded.tokens)
        assert decoded.tokens == expected
        assert count.replays


def test_without_a_sink_flash_attn_is_called_as_before(unpatched, monkeypatch):
    attending.assert_called_as_before(monkeypatch, ATTENTION_SINKS)


@pytest.mark.parametrize("softmax_type", SINKS)
@pytest.mark.parametrize("batch", [(), (3,)], ids=["packed", "one row a request"])
def test_the_share_is_that_of_a_softmax_with_one_score_more(softmax_type, batch):
    scale_by_sink = getattr(attending.attention().Attention, "_scale_by_sink", None)
    if scale_by_sink is None:
        pytest.skip("not patched")
    heads, queries, keys = 4, 5, 7
    offsets = torch.zeros(heads) if softmax_type == "off-by-one" else torch.randn(heads)
    layer = SimpleNamespace(
        config=SimpleNamespace(softmax_type=softmax_type),
        core_attention=SimpleNamespace(softmax_offset=offsets.bfloat16()),
    )
    scores = torch.randn(*batch, heads, queries, keys) * 3
    values = torch.randn(*batch, heads, keys, 8)
    sinks = offsets.bfloat16().float()[:, None, None].expand(*batch, -1, queries, 1)
    with_sink = torch.cat((scores, sinks), dim=-1).softmax(-1)[..., :-1] @ values
    without = (scores.softmax(-1) @ values).transpose(-2, -3)

    output = scale_by_sink(layer, without, scores.logsumexp(-1))
    torch.testing.assert_close(output, with_sink.transpose(-2, -3))
    rounded = scale_by_sink(layer, without.bfloat16(), scores.logsumexp(-1))
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded, output.bfloat16(), atol=0.02, rtol=0.02)
    # Rows that see no key give zero, whatever log-sum-exp is returned for them.
    nothing = torch.zeros_like(without)
    for sums in (torch.inf, -torch.inf):
        lse = torch.full((*batch, heads, queries), sums)
        assert not scale_by_sink(layer, nothing, lse).any()


def test_multi_latent_attention_is_left_as_it_is():
    has_sink = getattr(attending.attention().Attention, "_has_sink", None)
    if has_sink is None:
        pytest.skip("not patched")
    for latent in (False, True):
        layer = attending.layer(latent=latent, softmax_type="learnable")
        assert has_sink(layer) is not latent
