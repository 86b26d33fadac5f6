"""Attention sinks in dynamic inference, on whichever release is installed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import megatron_patch
from megatron_patch.backports.upstream.attention_sinks import ATTENTION_SINKS

from . import attending
from .checks import assert_state_of_record, needs, proof

pytestmark = pytest.mark.usefixtures("device")

SINKS = ("off-by-one", "learnable")


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


@pytest.mark.parametrize("softmax_type", SINKS)
def test_with_all_else_that_gpt_oss_has(softmax_type):
    attending.check(
        {
            "softmax_type": softmax_type,
            "num_layers": 4,
            "num_query_groups": 2,
            "window_size": (8, 0),
            "window_attn_skip_freq": 2,
            "position_embedding_type": "yarn",
            "yarn": {"rotary_scaling_factor": 32.0, "correction_range_round_to_int": False},
        }
    )


def test_without_a_sink_flash_attn_is_called_as_before(unpatched, monkeypatch):
    without = attending.calls_of(monkeypatch)
    megatron_patch.install()
    assert attending.calls_of(monkeypatch) == without


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
    # Rows that see no key give nothing, whatever the sum of nothing is said to be.
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
