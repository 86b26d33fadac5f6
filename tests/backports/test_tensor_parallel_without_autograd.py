"""Tensor-parallel layers: the same numbers, and autograd where gradients are on alone.

That several ranks answer what one answers is in ``tests/gpu/test_tensor_parallel.py``, which also
runs on CPUs.
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.tensor_parallel_without_autograd import (
    COLUMN,
    EMBEDDING,
    ROW,
    TENSOR_PARALLEL_WITHOUT_AUTOGRAD,
)
from megatron_patch.judge import judge

from ..conftest import expected_state
from .checks import (
    REQUESTS,
    SPECS,
    assert_patches_change_no_output,
    state_of,
    with_one_token_changed,
)

RELEASE = Version(importlib.metadata.version("megatron-core"))
IN, OUT = 8, 6

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(scope="module")
def layers(device):
    """Megatron's module."""
    testing.context_class()
    from megatron.core.tensor_parallel import layers

    return layers


def test_state(layers):
    assert state_of(TENSOR_PARALLEL_WITHOUT_AUTOGRAD) is expected_state(State.APPLIED)


# ------------------------------------------------------------------------ the layers


def config(device: torch.device) -> Any:
    from megatron.core.model_parallel_config import ModelParallelConfig

    return ModelParallelConfig(
        params_dtype=torch.float32, use_cpu_initialization=device.type == "cpu"
    )


def column(layers: Any, device: torch.device, **options: Any) -> Any:
    options = {"bias": True, "gather_output": True, **options}
    return layers.ColumnParallelLinear(
        IN, OUT, config=config(device), init_method=torch.nn.init.normal_, **options
    )


def row(layers: Any, device: torch.device, **options: Any) -> Any:
    options = {"bias": True, "input_is_parallel": True, "skip_bias_add": False, **options}
    return layers.RowParallelLinear(
        IN, OUT, config=config(device), init_method=torch.nn.init.normal_, **options
    )


def embedding(layers: Any, device: torch.device) -> Any:
    return layers.VocabParallelEmbedding(
        OUT, IN, config=config(device), init_method=torch.nn.init.normal_
    )


LAYERS: dict[str, Callable[[Any, torch.device], Any]] = {
    "column": column,
    "column without bias": lambda *where: column(*where, bias=False),
    "column whose bias is added later": lambda *where: column(*where, skip_bias_add=True),
    "column that gathers nothing": lambda *where: column(*where, gather_output=False),
    "row": row,
    "row whose bias is added later": lambda *where: row(*where, skip_bias_add=True),
    "embedding": embedding,
}


def layer_and_input(name: str, layers: Any, device: torch.device) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(1)
    layer = LAYERS[name](layers, device).to(device)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    if name == "embedding":
        return layer, torch.arange(OUT, device=device).reshape(3, 2)
    return layer, torch.randn(3, 2, IN, device=device)


@pytest.fixture
def applied(layers, mocker) -> Callable[[], Counter[str]]:
    """Counts the applications of each autograd function."""
    from megatron.core.tensor_parallel import mappings

    spies = {
        name: mocker.spy(function, "apply")
        for module in (layers, mappings)
        for name, function in vars(module).items()
        if isinstance(function, type)
        and issubclass(function, torch.autograd.Function)
        and function.__module__ == module.__name__
    }
    return lambda: +Counter({name: spy.call_count for name, spy in spies.items()})


# ------------------------------------------------------------------------ what it costs


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", LAYERS)
def test_without_gradients_no_autograd_function_is_applied(
    layers, device, applied, name, mode, frozen
):
    layer, tensor = layer_and_input(name, layers, device)
    layer.requires_grad_(not frozen)
    with mode():
        layer(tensor)
    assert applied() == {}


@pytest.mark.parametrize("frozen", [False, True])
def test_unpatched_they_are_applied_in_inference_too(unpatched, layers, device, applied, frozen):
    layer, tensor = layer_and_input("column", layers, device)
    layer.requires_grad_(not frozen)
    with torch.inference_mode():
        layer(tensor)
    assert applied().total() == 3


def test_with_gradients_the_same_functions_are_applied(unpatched, layers, device, applied):
    cases = [layer_and_input(name, layers, device) for name in LAYERS]
    for layer, tensor in cases:
        layer(tensor)
    without = applied()
    megatron_patch.install()
    for layer, tensor in cases:
        layer(tensor)
    assert applied() == without + without


def test_a_step_of_the_engine_applies_none(layers, applied):
    engine = testing.build_engine(testing.EngineSpec())
    testing.decode(engine, REQUESTS, capture_logits=False)
    assert applied() == {}


# ------------------------------------------------------------------------ what it does


def as_list(output: Any) -> list[Any]:
    return list(output) if isinstance(output, (tuple, list)) else [output]


def assert_equal(patched: dict[Any, Any], without: dict[Any, Any]) -> None:
    assert patched.keys() == without.keys()
    for key, answer in without.items():
        for one, other in zip(as_list(patched[key]), as_list(answer), strict=True):
            assert (one is None) == (other is None), key
            if one is not None:
                assert one.equal(other), key
                assert one.dtype == other.dtype
                assert one.requires_grad == other.requires_grad
                assert one.is_inference() == other.is_inference()


def outputs(layers: Any, device: torch.device, autocast: bool) -> dict[tuple[Any, ...], Any]:
    """What each layer answers, by its name and how it was called."""
    answers = {}
    for name in LAYERS:
        layer, tensor = layer_and_input(name, layers, device)
        for frozen in (False, True):
            layer.requires_grad_(not frozen)
            for mode in (torch.inference_mode, torch.no_grad):
                with mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                    answers[name, frozen, mode] = layer(tensor)
    return answers


@pytest.mark.parametrize("autocast", [False, True])
def test_outputs_are_bit_identical(unpatched, layers, device, autocast):
    without = outputs(layers, device, autocast)
    megatron_patch.install()
    assert_equal(outputs(layers, device, autocast), without)


def gradients(layers: Any, device: torch.device) -> dict[str, Any]:
    """Output and gradients of each layer, by its name."""
    answers = {}
    for name in LAYERS:
        layer, tensor = layer_and_input(name, layers, device)
        output = as_list(layer(tensor))[0]
        output.sum().backward()
        answers[name] = [output.detach(), *(parameter.grad for parameter in layer.parameters())]
    return answers


def test_gradients_are_bit_identical(unpatched, layers, device):
    without = gradients(layers, device)
    megatron_patch.install()
    assert_equal(gradients(layers, device), without)
    assert all(torch.is_tensor(answer[1]) for answer in without.values())


def test_the_input_is_not_written_to(layers, device):
    layer, tensor = layer_and_input("column", layers, device)
    before = tensor.clone()
    with torch.inference_mode():
        output, _ = layer(tensor)
        output.zero_()
    assert tensor.equal(before)


def test_a_compiled_layer_stays_one_graph(layers, device):
    layer, tensor = layer_and_input("column", layers, device)
    graphs = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module

    with torch.no_grad():
        expected = layer(tensor)
        compiled = torch.compile(layer, backend=backend, fullgraph=True)(tensor)
    torch._dynamo.reset()
    assert_equal({"output": compiled}, {"output": expected})
    assert len(graphs) == 1


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tokens_and_logits_are_bit_identical(unpatched, spec):
    if spec.num_speculative_tokens and RELEASE < Version("0.17"):
        pytest.skip(f"{RELEASE} has no speculative tokens")
    assert_patches_change_no_output(spec)


# ------------------------------------------------------------------------ the record


TARGETS = [COLUMN, ROW, EMBEDDING] if RELEASE < Version("0.18") else [COLUMN, ROW]


@pytest.mark.parametrize("target", TARGETS)
def test_changed_source_is_left_alone(target):
    verdict = judge(TENSOR_PARALLEL_WITHOUT_AUTOGRAD, with_one_token_changed(target))
    assert verdict.family is None
    assert verdict.state is State.DRIFTED
