"""Tensor-parallel layers: the same numbers, and autograd only where gradients are on.

That several ranks compute what one does is tested in ``tests/gpu/test_tensor_parallel.py``, which
also runs on CPUs.
"""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.ours.tensor_parallel_without_autograd import (
    COPY,
    FROZEN,
    GATHER,
    LINEAR,
    REDUCE,
    TENSOR_PARALLEL_WITHOUT_AUTOGRAD,
)
from megatron_patch.judge import judge
from megatron_patch.verdicts import Verdict

from ..conftest import RELEASE, expected_state
from .checks import (
    REQUESTS,
    SPECS,
    assert_patches_change_no_output,
    proof,
    state_of,
    with_one_token_changed,
)

IN, OUT = 8, 6

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(scope="module")
def layers(device):
    """Megatron's module of tensor-parallel layers."""
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
def applied(layers, monkeypatch) -> Callable[[], Counter[str]]:
    """Counts the applications of each autograd function, by autograd itself."""
    from megatron.core.tensor_parallel import mappings

    counts: Counter[str] = Counter()
    by_autograd = vars(torch.autograd.Function)["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls.__module__ in (layers.__name__, mappings.__name__):
            counts[cls.__name__] += 1
        return by_autograd.__get__(None, cls)(*args, **kwargs)

    monkeypatch.setattr(torch.autograd.Function, "apply", classmethod(apply))
    return lambda: Counter(counts)


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


@proof
@pytest.mark.parametrize("frozen", [False, True])
def test_no_layer_applies_an_autograd_function_in_inference(layers, device, applied, frozen):
    for name in LAYERS:
        layer, tensor = layer_and_input(name, layers, device)
        layer.requires_grad_(not frozen)
        expected = as_list(layer(tensor))[0].detach()
        before = applied()
        with torch.inference_mode():
            output = as_list(layer(tensor))[0]
        assert applied() == before, name
        assert output.equal(expected)


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


@proof
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
    """The output of each layer, by its name and how it was called."""
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


# ------------------------------------------------------------------------ what a caller sees


MODES = [torch.inference_mode, torch.no_grad, torch.enable_grad]
WITH_REGIONS = [name for name in LAYERS if name != "embedding"]


def before_groups(name: str, layers: Any, device: torch.device) -> tuple[Any, torch.Tensor]:
    """A layer as built before ``init_process_group()``: it looks its group up when it is called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: False)
        layer, tensor = layer_and_input(name, layers, device)
    assert layer.tp_group is None
    return layer, tensor


def answers(layers: Any, device: torch.device, mode: Any) -> tuple[dict[str, Any], list[str]]:
    """The output of each such layer, and its warnings."""
    outputs = {}
    with warnings.catch_warnings(record=True) as caught, mode():
        warnings.simplefilter("always")
        for name in WITH_REGIONS:
            layer, tensor = before_groups(name, layers, device)
            outputs[name] = layer(tensor)
    return outputs, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("mode", MODES)
def test_layers_that_are_older_than_the_groups_answer(unpatched, layers, device, mode):
    without, warned = answers(layers, device, mode)
    megatron_patch.install()
    outputs, still_warned = answers(layers, device, mode)
    assert_equal(outputs, without)
    assert still_warned == warned
    # Once for each time that a group is looked up.
    assert any("tp_group is None" in message for message in warned)


def test_without_process_groups_layers_fail_alike(unpatched, layers, device, monkeypatch):
    def outcome(name: str) -> Any:
        layer, tensor = before_groups(name, layers, device)
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(torch.distributed, "is_initialized", lambda: False)
            try:
                return [part is None for part in as_list(layer(tensor))]
            except (AttributeError, AssertionError) as error:
                return repr(error)

    without = {name: outcome(name) for name in WITH_REGIONS}
    megatron_patch.install()
    assert {name: outcome(name) for name in WITH_REGIONS} == without


def traits(tensor: torch.Tensor, *others: torch.Tensor) -> list[Any]:
    """All that a caller sees of a tensor except values, and what it shares with ``others``."""
    base = tensor._base
    return [
        tensor.requires_grad,
        tensor.grad_fn is None,
        tensor.is_leaf,
        tensor.is_inference(),
        type(tensor),
        tensor.shape,
        tensor.stride(),
        None if tensor.is_inference() else tensor._version,
        base is None,
        [
            (
                tensor is other,
                tensor.data_ptr() == other.data_ptr(),
                base is not None and (base is other or base is other._base),
            )
            for other in others
        ],
    ]


INPUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda tensor: tensor,
    "view": lambda tensor: torch.cat([tensor, tensor])[: len(tensor)],
    "leaf that requires gradients": lambda tensor: tensor.requires_grad_(),
    "result that requires gradients": lambda tensor: tensor.requires_grad_() * 2,
}


def relations(name: str, layers: Any, device: torch.device, inputs: Any, mode: Any) -> list[Any]:
    """Of what a subclass of the layer is given, of its product, and of what the layer answers."""
    found: list[Any] = []
    layer, tensor = layer_and_input(name, layers, device)
    tensor = inputs(tensor)

    class Observed(type(layer)):  # type: ignore[misc]
        def _forward_impl(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            product = super()._forward_impl(input, *args, **kwargs)
            found.append((input, product))
            return product

    layer.__class__ = Observed
    with mode():
        output = as_list(layer(tensor))[0]
    ((given, product),) = found
    return [traits(given, tensor), traits(product, given), traits(output, product, tensor)]


@pytest.mark.parametrize("mode", MODES)
def test_tensors_are_related_as_autograd_relates_them(unpatched, layers, device, mode):
    cases = [(name, kind) for name in WITH_REGIONS for kind in INPUTS]
    without = {
        (name, kind): relations(name, layers, device, INPUTS[kind], mode) for name, kind in cases
    }
    megatron_patch.install()
    for (name, kind), expected in without.items():
        assert relations(name, layers, device, INPUTS[kind], mode) == expected, (name, kind)


def test_what_is_set_on_the_copy_of_an_input_is_not_set_on_the_input(layers, device):
    layer, tensor = layer_and_input("column", layers, device)

    class Marking(type(layer)):  # type: ignore[misc]
        def _forward_impl(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            input.marked = True
            return super()._forward_impl(input, *args, **kwargs)

    layer.__class__ = Marking
    with torch.no_grad():
        layer(tensor)
    assert not hasattr(tensor, "marked")


def test_a_function_that_somebody_replaced_is_called(layers, device, mocker):
    layer, tensor = layer_and_input("column", layers, device)
    copy = mocker.spy(layers, "copy_to_tensor_model_parallel_region")
    gather = mocker.spy(layers, "gather_from_tensor_model_parallel_region")
    with torch.no_grad():
        layer(tensor)
    assert copy.call_count == gather.call_count == 1


@pytest.mark.parametrize(
    "name", ["LinearWithGradAccumulationAndAsyncCommunication", "LinearWithFrozenWeight"]
)
def test_a_class_that_somebody_derived_and_put_in_its_place_is_applied(
    layers, device, monkeypatch, name
):
    """The class has a forward() of its own, which gets its context from autograd."""
    original = getattr(layers, name)

    def forward(ctx, *args):
        return 2 * original.forward(ctx, *args)

    derived = type("Derived", (original,), {"forward": staticmethod(forward)})
    layer, values = layer_and_input("column", layers, device)
    layer.weight.requires_grad_(name != "LinearWithFrozenWeight")
    layer.bias.data.zero_()
    with torch.no_grad():
        expected = layer(values)[0]
        monkeypatch.setattr(layers, name, derived)
        assert torch.equal(layer(values)[0], 2 * expected)


def test_a_forward_that_somebody_replaced_has_autograds_context(layers, device, monkeypatch):
    """Such as one that asks for ``needs_input_grad``, or one with a ``setup_context()``."""
    needed = []

    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, *args: Any) -> torch.Tensor:
        needed.append(ctx.needs_input_grad[:2])
        return input @ weight.t()

    layer, tensor = layer_and_input("column without bias", layers, device)
    function = layers.LinearWithGradAccumulationAndAsyncCommunication
    monkeypatch.setattr(function, "forward", staticmethod(forward))
    with torch.no_grad():
        output, _ = layer(tensor)
        assert output.equal(tensor @ layer.weight.t())
    assert needed == [(False, True)]

    monkeypatch.setattr(
        function, "forward", staticmethod(lambda input, weight, *args: input @ weight.t())
    )
    monkeypatch.setattr(function, "setup_context", staticmethod(lambda ctx, inputs, output: None))
    with torch.no_grad():
        assert layer(tensor)[0].equal(output)


def test_functions_pickle(layers):
    from megatron.core import tensor_parallel

    for name in ("linear_with_grad_accumulation_and_async_allreduce", "ColumnParallelLinear"):
        item = getattr(tensor_parallel, name)
        assert pickle.loads(pickle.dumps(item)) is item


def test_the_input_is_not_written_to(layers, device):
    layer, tensor = layer_and_input("column", layers, device)
    before = tensor.clone()
    with torch.inference_mode():
        output, _ = layer(tensor)
        output.zero_()
    assert tensor.equal(before)


def test_a_compiled_layer_stays_one_graph(layers, device, monkeypatch):
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
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


@pytest.mark.parametrize(
    ("of_class", "name"),
    [(LINEAR, "ctx."), (FROZEN, "ctx."), (COPY, "ctx."), (REDUCE, "group"), (GATHER, "ctx.")],
)
def test_changed_source_is_left_alone(of_class, name):
    reader = with_one_token_changed(f"{of_class}.forward", name, f"other_{name}")
    judgement = judge(TENSOR_PARALLEL_WITHOUT_AUTOGRAD, reader)
    assert judgement.variant is None
    assert judgement.verdict is Verdict.DRIFTED
