"""The replay of a layer's graph: the same one, with autograd where gradients are on alone.

No graph is captured on a CPU: Megatron's runner, its autograd function and its manager are there,
and in the place of the graph is an object that does what a captured kernel would do.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.graph_replay_without_autograd import (
    FORWARD,
    GRAPH_REPLAY_WITHOUT_AUTOGRAD,
    REPLAY,
)
from megatron_patch.judge import judge
from megatron_patch.sources import read_source

from ..conftest import expected_state, not_in_source
from .checks import state_of, with_one_token_changed
from .graph_runners import cuda_graphs, manager_of, replay, runner_of

RELEASE = Version(importlib.metadata.version("megatron-core"))

pytestmark = pytest.mark.usefixtures("device")
from_016 = pytest.mark.skipif(
    RELEASE < Version("0.16"), reason=f"{RELEASE} passes parameters to each replay"
)


@pytest.fixture(scope="module")
def graphs(device):
    """Megatron's module."""
    return cuda_graphs()


def test_state(graphs):
    assert state_of(GRAPH_REPLAY_WITHOUT_AUTOGRAD) is expected_state(State.APPLIED)


class Doubles:
    """The graph of a layer that doubles its input."""

    def __init__(self, surface, outputs):
        self.surface, self.outputs, self.replays = surface, outputs, 0

    def replay(self):
        self.replays += 1
        for one, other in zip(self.surface, self.outputs, strict=True):
            other.copy_(one * 2)


def captured(*tensors, **others):
    """A runner with the graph of a layer that got these arguments."""
    kwargs = {**{f"t{n}": tensor for n, tensor in enumerate(tensors)}, **others}
    runner = runner_of((), kwargs)
    runner.fwd_graph_input_surface = tuple(torch.zeros_like(tensor) for tensor in tensors)
    runner.fwd_graph_output_surface = tuple(torch.zeros_like(tensor) for tensor in tensors)
    runner.fwd_graph_outputs = list(runner.fwd_graph_output_surface)
    runner.fwd_graph = Doubles(runner.fwd_graph_input_surface, runner.fwd_graph_output_surface)
    runner.grad_enabled = runner.fp8_enabled = runner.fp4_enabled = runner.use_stream = False
    runner.is_last_layer = runner.is_first_layer = False
    return runner, kwargs


def replayed(runner, kwargs):
    return runner.replay_graph_capture(False, (), kwargs)


@pytest.fixture
def applied(graphs, monkeypatch):
    """The applications of the autograd function, by autograd itself."""
    calls = []
    by_autograd = vars(torch.autograd.Function)["apply"]

    def apply(cls, *args):
        if cls is graphs._CudagraphReplayNode:
            calls.append(cls)
        return by_autograd.__get__(None, cls)(*args)

    monkeypatch.setattr(torch.autograd.Function, "apply", classmethod(apply))
    return calls


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_without_gradients_autograd_is_left_out(graphs, applied, mode):
    with mode():
        runner, kwargs = captured(torch.ones(2), torch.full((3,), 2.0), mask=None)
        one, other = replayed(runner, kwargs)
    assert one.tolist() == [2, 2]
    assert other.tolist() == [4, 4, 4]
    assert (runner.fwd_graph.replays, len(applied)) == (1, 0)


def test_unpatched_autograd_is_there_in_inference_too(unpatched, graphs, applied):
    with torch.inference_mode():
        replayed(*captured(torch.ones(2)))
    assert len(applied) == 1


def test_with_gradients_autograd_is_there(graphs, applied):
    runner, kwargs = captured(torch.ones(2, requires_grad=True))
    (output,) = replayed(runner, kwargs)
    assert len(applied) == 1
    assert output.grad_fn is not None


@pytest.mark.parametrize("last", [False, True])
def test_what_is_returned_is_what_autograd_would_return(unpatched, graphs, last):
    def run():
        with torch.inference_mode():
            runner, kwargs = captured(torch.ones(2), torch.ones(3))
            runner.is_last_layer = last
            outputs = replayed(runner, kwargs)
        kept = runner.fwd_graph_output_surface
        return [
            (o.tolist(), o is k, o.data_ptr() == k.data_ptr(), o.requires_grad, o.is_inference())
            for o, k in zip(outputs, kept, strict=True)
        ]

    without = run()
    megatron_patch.install()
    assert run() == without


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("kind", ["surface", "view of the surface", "input"])
def test_outputs_with_a_history_are_left_as_autograd_would_leave_them(
    unpatched, graphs, kind, history
):
    """The surface of a graph that was captured for training, as its last replay has left it."""

    def run():
        runner, kwargs = captured(torch.ones(2, requires_grad=history))
        (output,) = runner.fwd_graph_output_surface
        if history:
            output.requires_grad_()
            output = output * 2 if kind == "surface" else output
        if kind == "view of the surface":
            output = output[:]
        if kind == "input":
            output = kwargs["t0"]
            runner.fwd_graph.outputs = runner.fwd_graph.surface
        runner.fwd_graph_output_surface = (output,)
        runner.fwd_graph.replay = lambda: None
        with torch.no_grad():
            (found,) = replayed(runner, kwargs)
        seen = [found is output, found.data_ptr() == output.data_ptr()]
        for tensor in (found, output):
            seen += [tensor._is_view(), tensor.requires_grad, tensor.grad_fn is None]
            seen += [tensor.is_leaf, tensor.tolist()]
        return seen

    without = run()
    megatron_patch.install()
    assert run() == without


@pytest.mark.parametrize("how", ["function", "subclass"])
def test_a_forward_in_the_place_of_megatrons_is_applied_by_autograd(
    graphs, applied, monkeypatch, how
):
    """Such as one with a context of its own, which is made by autograd."""
    node = graphs._CudagraphReplayNode

    def forward(ctx, runner, is_first_microbatch, *inputs):
        assert ctx.needs_input_grad
        return tuple(tensor * 3 for tensor in inputs)

    if how == "function":
        monkeypatch.setattr(node, "forward", staticmethod(forward))
    else:
        other = type("Other", (node,), {"forward": staticmethod(forward)})
        monkeypatch.setattr(graphs, "_CudagraphReplayNode", other)
    with torch.no_grad():
        (output,) = replayed(*captured(torch.ones(2)))
    assert output.tolist() == [3, 3]


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(testing.EngineSpec().vocab_size, (2, 9), generator=generator).tolist()


def seen_in_evaluation(model) -> list[tuple[object, ...]]:
    """What each layer answers when the model is called without gradients."""
    seen = []

    def note(module, args, output):
        tensor = output[0] if isinstance(output, tuple) else output
        seen.append((tensor.requires_grad, tensor.grad_fn is None, tensor.cpu().numpy().tolist()))

    handles = [layer.register_forward_hook(note) for layer in model.decoder.layers]
    with torch.no_grad():
        logits = testing.forward(model, [row[:-1] for row in batch(3)])
    for handle in handles:
        handle.remove()
    return [*seen, (logits.requires_grad, logits.tolist())]


@pytest.fixture
def without_graphs(device):
    """Megatron keeps them in the process."""
    yield
    testing.drop_cuda_graphs()


@from_016
@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_evaluation_between_training_steps_changes_nothing_and_has_no_history(
    unpatched, without_graphs, in_flight
):
    """With graphs of forward and backward, and so many microbatches under way at once."""

    def life():
        testing.drop_cuda_graphs()
        spec = testing.EngineSpec(cuda_graph_scope="layer")
        model = testing.build_model(spec, training=True)
        seen = []
        for step in range(3):
            batches = [batch(6 * step + n) for n in range(in_flight)]
            trained = testing.train_step(model, batches, in_flight=in_flight)
            seen.append([gradient.tolist() for gradient in trained.gradients.values()])
            seen.append([float(loss) for loss in trained.losses])
            seen.append(seen_in_evaluation(model))
        return seen

    without = life()
    megatron_patch.install()
    patched = life()
    answers = [answer for evaluation in patched[2::3] for answer in evaluation]
    assert answers
    assert not any(requires_grad for requires_grad, *_ in answers)
    assert patched == without


def test_what_a_replay_refuses_is_refused_as_ever(graphs):
    runner, kwargs = captured(torch.ones(2))
    with torch.inference_mode():
        with pytest.raises(AssertionError, match="argument mismatch"):
            replayed(runner, {"t0": torch.ones(3)})
        runner.status = graphs._GraphStatus.BWD_READY
        with pytest.raises(AssertionError, match="bwd cudagraph was expected"):
            replayed(runner, kwargs)
        runner.fwd_graph = None
        with pytest.raises(AssertionError, match="before calling"):
            replayed(runner, kwargs)


@dataclasses.dataclass
class Packed:
    lengths: Any
    count: int = 2


leaves = st.sampled_from([None, True, 3, 1.5, "text"])
tensors = st.builds(torch.zeros, st.sampled_from([(1,), (2, 2)]))
values = leaves | tensors | st.builds(Packed, leaves | tensors)


@from_016
@given(
    st.lists(values, max_size=4), st.dictionaries(st.sampled_from("abcd"), values), st.booleans()
)
def test_the_tensors_are_those_of_get_tensors_in_their_order(graphs, args, kwargs, with_context):
    runner = graphs._CudaGraphRunner.__new__(graphs._CudaGraphRunner)
    if with_context:
        kwargs["inference_context"] = object()
    found = runner._tensors_of(tuple(args), kwargs)
    expected = runner.get_tensors(tuple(args), kwargs, check_types=False)
    assert isinstance(found, tuple)
    assert [id(tensor) for tensor in found] == [id(tensor) for tensor in expected]


@from_016
def test_no_closure_looks_at_the_arguments_of_a_layer(graphs, mocker):
    spy = mocker.spy(graphs._CudaGraphRunner, "get_tensors")
    runner, kwargs = captured(torch.ones(2), mask=None, flag=True, name="a")
    with torch.inference_mode():
        replayed(runner, kwargs)
    assert spy.call_count == 0


@pytest.fixture
def manager(device, mocker):
    """A manager, and the runner that it gets for its layer."""
    runner = runner_of((), {}).eval()
    return manager_of(runner, mocker), runner


def attributes_set(mocker, manager) -> list[str]:
    """The attributes of modules that one call of a layer in inference sets."""
    spy = mocker.spy(torch.nn.Module, "__setattr__")
    replay(manager, torch.nn.Linear(1, 1).eval())
    mocker.stop(spy)
    names = [call.args[1] for call in spy.call_args_list]
    return [name for name in names if name in ("is_first_microbatch", "status")]


@from_016
def test_attributes_are_set_when_they_change(graphs, manager, mocker):
    one, runner = manager
    assert attributes_set(mocker, one) == ["is_first_microbatch"]
    assert attributes_set(mocker, one) == []
    runner.status = graphs._GraphStatus.BWD_READY
    assert attributes_set(mocker, one) == ["status"]
    assert runner.status is graphs._GraphStatus.FWD_READY
    assert one.is_first_microbatch is False


@from_016
def test_unpatched_each_call_sets_them(unpatched, manager, mocker):
    for _ in range(3):
        assert attributes_set(mocker, manager[0]) == ["is_first_microbatch", "status"]


def with_another_context(module):
    """Reads the installed source, with a forward() that does something else with its context."""
    text = read_source(module)
    before, node, after = (text or "").partition("class _CudagraphReplayNode")
    return before + node + after.replace("ctx.runner = runner", "ctx.other = runner", 1)


@not_in_source
@pytest.mark.parametrize(
    ("target", "read"),
    [
        pytest.param(REPLAY, with_one_token_changed(REPLAY), marks=from_016),
        (FORWARD, with_another_context),
    ],
    ids=["replay", "forward"],
)
def test_one_changed_token_in_a_target_is_drifted(target, read):
    verdict = judge(GRAPH_REPLAY_WITHOUT_AUTOGRAD, read)
    assert verdict.state is State.DRIFTED
    assert target in verdict.reason
