"""The replay of a layer's graph: the same results, and autograd only where gradients are on.

No graph is captured on a CPU: Megatron's runner, its autograd function and its manager are there,
and in the place of the graph is an object that does what a captured kernel would do.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.ours.graph_replay_without_autograd import (
    FORWARD,
    GRAPH_REPLAY_WITHOUT_AUTOGRAD,
)
from megatron_patch.judge import judge
from megatron_patch.sources import read_source
from megatron_patch.verdicts import Verdict

from ..conftest import RELEASE, expected_state, not_in_source
from .checks import as_it_is, proof, state_of, with_one_token_changed
from .graph_runners import cuda_graphs, manager_of, replay, runner_of

TENSORS = "megatron.core.transformer.cuda_graphs:_CudaGraphRunner.get_tensors"

pytestmark = pytest.mark.usefixtures("device")
needs_training = pytest.mark.skipif(
    RELEASE < Version("0.16"), reason=f"{RELEASE} answers with other tensors than its static ones"
)
from_016 = pytest.mark.skipif(
    RELEASE < Version("0.16"), reason=f"{RELEASE} passes parameters to each replay"
)


@pytest.fixture(scope="module")
def graphs(device):
    """Megatron's module of CUDA graphs."""
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
    runner._gtp_fwd_params_to_ensure_ready = ()  # of main after the newest release
    return runner, kwargs


def replayed(runner, kwargs):
    return runner.replay_graph_capture(False, (), kwargs)


@pytest.fixture
def applied(graphs, monkeypatch):
    """The functions that autograd itself applies, in order."""
    by_autograd, names = vars(torch.autograd.Function)["apply"], []

    def apply(cls, *args, **kwargs):
        names.append(cls.__name__)
        return by_autograd.__get__(None, cls)(*args, **kwargs)

    monkeypatch.setattr(torch.autograd.Function, "apply", classmethod(apply))
    return names


@proof
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_without_gradients_autograd_is_left_out(graphs, applied, mode):
    with mode():
        runner, kwargs = captured(torch.ones(2), torch.full((3,), 2.0), mask=None)
        one, other = replayed(runner, kwargs)
    assert one.tolist() == [2, 2]
    assert other.tolist() == [4, 4, 4]
    assert (runner.fwd_graph.replays, applied) == (1, [])


def test_unpatched_autograd_is_there_in_inference_too(unpatched, graphs, applied):
    with torch.inference_mode():
        replayed(*captured(torch.ones(2)))
    assert applied == ["_CudagraphReplayNode"]


def test_with_gradients_autograd_is_there(graphs, applied):
    runner, kwargs = captured(torch.ones(2, requires_grad=True))
    (output,) = replayed(runner, kwargs)
    assert applied == ["_CudagraphReplayNode"]
    assert output.grad_fn is not None


#: What a static output may be like when a replay has come to its end.
STATIC_OUTPUTS = {
    "plain": lambda tensor: torch.zeros_like(tensor),
    "with the history of a replay": lambda tensor: torch.zeros_like(tensor).requires_grad_() * 2,
    "leaf that requires gradients": lambda tensor: torch.zeros_like(tensor).requires_grad_(),
    "view": lambda tensor: torch.zeros(2, *tensor.shape)[0],
    "view with history": lambda tensor: (torch.zeros(2, *tensor.shape).requires_grad_() * 2)[0],
    "the input": lambda tensor: tensor,
}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("gradients", [False, True], ids=["plain input", "input with gradients"])
def test_outputs_are_left_as_autograd_leaves_them(unpatched, graphs, mode, gradients):
    """In 0.16 and later they are the graph's own."""

    def outcome(kind):
        tensor = torch.ones(3, requires_grad=gradients)
        runner, kwargs = captured(tensor)
        output = STATIC_OUTPUTS[kind](tensor)
        runner.fwd_graph_output_surface = (output,)
        runner.fwd_graph_outputs = [output]
        runner.fwd_graph.replay = lambda: None
        with mode():
            (answer,) = replayed(runner, kwargs)
        return [
            answer is output,
            answer.data_ptr() == output.data_ptr(),
            answer._base is output,
            *(
                (
                    one.requires_grad,
                    type(one.grad_fn).__name__,
                    one.is_leaf,
                    one._is_view(),
                    one.is_inference(),
                    one._version,
                )
                for one in (answer, output)
            ),
        ]

    without = {kind: outcome(kind) for kind in STATIC_OUTPUTS}
    megatron_patch.install()
    for kind, expected in without.items():
        assert outcome(kind) == expected, kind


@pytest.mark.parametrize("how", ["function", "subclass"])
def test_a_forward_that_somebody_replaced_has_autograds_context(graphs, applied, monkeypatch, how):
    """Such as one that uses the context which autograd makes for it."""
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


# ------------------------------------------------------------------------ in training

SPEC = testing.EngineSpec(cuda_graph_scope="layer")


def batch(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 9)
    return torch.randint(SPEC.vocab_size, shape, generator=generator, device="cpu").tolist()


def seen_in_evaluation(model: Any) -> list[Any]:
    """What a pass without gradients gets from the graph of the last layer, and the logits."""
    seen: list[torch.Tensor] = []
    norm = model.decoder.final_layernorm
    hook = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        seen.append(testing.forward(model, [row[:-1] for row in batch(99)]))
    hook.remove()
    assert len(seen) == 2
    return [
        (one.requires_grad, one.grad_fn is None, one.is_leaf, one.detach().tolist()) for one in seen
    ]


def life(in_flight: int, evaluations: bool) -> list[Any]:
    """Three steps of training with graphs, and passes without gradients in between."""
    model = testing.build_model(SPEC, training=True)
    found: list[Any] = []
    for step in range(3):
        batches = [batch(10 * step + index) for index in range(2)]
        trained = testing.train_step(model, batches, in_flight=in_flight)
        found.append([loss.item() for loss in trained.losses])
        found.append({name: one.tolist() for name, one in trained.gradients.items()})
        if evaluations:
            found.append(seen_in_evaluation(model))
    testing.drop_cuda_graphs()
    return found


@pytest.fixture
def dropped_graphs(device):
    """Drop all graphs afterwards: Megatron keeps those of a failed test too."""
    yield
    testing.drop_cuda_graphs()


@needs_training
@pytest.mark.usefixtures("dropped_graphs")
@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_evaluation_between_training_steps_has_no_history(unpatched, in_flight):
    without = life(in_flight, evaluations=True)
    megatron_patch.install()
    assert life(in_flight, evaluations=True) == without


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


@pytest.fixture
def unpatched_get_tensors(unpatched, graphs):
    """The function as released, while the patches are installed."""
    function = as_it_is(graphs._CudaGraphRunner.get_tensors)
    megatron_patch.install()
    assert graphs._CudaGraphRunner.get_tensors.__code__ is not function.__code__
    return function


@from_016
def test_the_tensors_are_those_of_get_tensors_in_their_order(graphs, unpatched_get_tensors):
    runner = graphs._CudaGraphRunner.__new__(graphs._CudaGraphRunner)
    keywords = st.none() | st.dictionaries(st.sampled_from("abcd"), values)

    @given(st.lists(values, max_size=4) | st.none() | tensors, keywords, st.booleans())
    def compare(args, kwargs, with_context):
        if with_context and kwargs is not None:
            kwargs["inference_context"] = object()
        found = runner.get_tensors(args, kwargs, check_types=False)
        expected = unpatched_get_tensors(runner, args, kwargs, check_types=False)
        assert isinstance(found, tuple)
        assert [id(tensor) for tensor in found] == [id(tensor) for tensor in expected]

    compare()


@from_016
def test_no_dataclass_is_looked_for_among_the_arguments_of_a_layer(graphs, mocker):
    spy = mocker.spy(graphs, "is_dataclass")
    runner, kwargs = captured(torch.ones(2), mask=None, flag=True, name="a")
    mocker.patch.object(runner, "get_mismatch_errors", return_value=[])
    with torch.inference_mode():
        replayed(runner, kwargs)
    assert spy.call_count == 0


@from_016
def test_a_get_tensors_that_somebody_replaced_is_called(graphs, mocker):
    runner, kwargs = captured(torch.ones(2), mask=None)
    spy = mocker.spy(graphs._CudaGraphRunner, "get_tensors")
    with torch.inference_mode():
        replayed(runner, kwargs)
    assert spy.call_count == 1


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


DRIFTED = [pytest.param(FORWARD, with_another_context, id="forward")]
if RELEASE >= Version("0.16"):  # before, they are looked for as they are
    changed = with_one_token_changed(TENSORS, "is_tensor", "is_storage")
    DRIFTED.append(pytest.param(TENSORS, changed, id="tensors"))


@not_in_source
@pytest.mark.parametrize(("target", "read"), DRIFTED)
def test_one_changed_token_in_a_target_is_drifted(target, read):
    judgement = judge(GRAPH_REPLAY_WITHOUT_AUTOGRAD, read)
    assert judgement.verdict is Verdict.DRIFTED
    assert target in judgement.reason
