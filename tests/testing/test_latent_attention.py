"""The stand-ins of multi-latent attention."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from megatron_patch import testing

SPEC = testing.EngineSpec(kv_lora_rank=32, position_embedding_type="rope", block_size_tokens=64)


def test_attention_to_latents_is_that_of_one_head_of_keys(device):
    if device.type != "cpu":
        pytest.skip("flash_mla may be installed")
    import flash_mla

    torch.manual_seed(0)
    queries, cache = torch.randn(2, 1, 4, 24), torch.randn(3, 8, 1, 24)
    lengths, table = torch.tensor([3, 11]), torch.tensor([[2, -1], [1, 0]])
    metadata = flash_mla.get_mla_metadata(lengths, 4, 1)
    found, _ = flash_mla.flash_mla_with_kvcache(
        queries, cache, table, lengths, 16, *metadata, softmax_scale=0.3, causal=True
    )
    for row, blocks in enumerate(([2], [1, 0])):
        latents = cache[blocks].flatten(0, 1)[: lengths[row], 0]
        weights = (0.3 * queries[row, 0] @ latents.T).softmax(-1)
        assert torch.allclose(found[row, 0], weights @ latents[:, :16], atol=1e-6)


def test_the_package_is_there_while_the_tests_run(device):
    assert "flash_mla" in sys.modules


def test_a_model_with_latents_and_one_without_have_the_same_weights(device):
    with_cache = testing.build_model(SPEC).state_dict()
    without = testing.build_model(dataclasses.replace(SPEC, cache_mla_latents=False)).state_dict()
    names = [name for name, value in without.items() if isinstance(value, torch.Tensor)]
    assert any("linear_kv_up_proj" in name for name in names)
    assert all(with_cache[name].equal(without[name]) for name in names)


def test_tokens_depend_on_all_of_the_prompt(device):
    """Otherwise a test that compares tokens would say little of attention."""
    model = testing.build_model(dataclasses.replace(SPEC, cache_mla_latents=False))
    requests = [testing.Request((first, 2, 3, 4, 5), 8) for first in range(6, 12)]
    assert len(set(testing.reference_decode(model, requests))) == len(requests)
