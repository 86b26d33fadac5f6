"""The layers that upstream's tests get where Transformer Engine is missing."""

from __future__ import annotations

import importlib
from contextlib import ExitStack

import pytest
import torch
from torch.nn import functional

from megatron_patch import testing
from megatron_patch.testing.models import transformer_config
from tools.upstream_suite import te_layers

NAMES = ("TENorm", "TELayerNormColumnParallelLinear", "TERowParallelLinear")


@pytest.fixture(autouse=True)
def missing(device):
    testing.context_class()
    if not te_layers.are_missing():
        pytest.skip("Transformer Engine is installed")


def test_they_are_where_megatron_finds_them_and_no_longer():
    extension = importlib.import_module(te_layers.EXTENSION)
    before = {name: vars(extension)[name] for name in NAMES}
    with ExitStack() as stack:
        te_layers.install(stack)
        assert all(isinstance(vars(extension)[name], type) for name in NAMES)
        assert vars(extension)["TERowParallelLinear"] is not before["TERowParallelLinear"]
    assert {name: vars(extension)[name] for name in NAMES} == before


def test_the_norm_comes_before_the_product(device):
    config = transformer_config(testing.EngineSpec())
    layer = te_layers.layers()["TELayerNormColumnParallelLinear"](
        64,
        96,
        config=config,
        init_method=config.init_method,
        gather_output=False,
        bias=True,
        skip_bias_add=False,
        is_expert=False,
    ).to(device)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        inputs = torch.randn(3, 2, 64, device=device)
        normal = functional.layer_norm(
            inputs, (64,), layer.norm.weight, layer.norm.bias, config.layernorm_epsilon
        )
        got, bias = layer(inputs)
    assert bias is None
    torch.testing.assert_close(got, functional.linear(normal, layer.weight, layer.bias))
