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
from megatron_patch import State
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
def applied(graphs, mocker):
    """Counts the calls of the autograd function."""
    return mocker.spy(graphs._CudagraphReplayNode, "apply")


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_without_gradients_autograd_is_left_out(graphs, applied, mode):
    with mode():
        runner, kwargs = captured(torch.ones(2), torch.full((3,), 2.0), mask=None)
        one, other = replayed(runner, kwargs)
    assert one.tolist() == [2, 2]
    assert other.tolist() == [4, 4, 4]
    assert (runner.fwd_graph.replays, applied.call_count) == (1, 0)


def test_unpatched_autograd_is_there_in_inference_too(unpatched, graphs, applied):
    with torch.inference_mode():
        replayed(*captured(torch.ones(2)))
    assert applied.call_count == 1


def test_with_gradients_autograd_is_there(graphs, applied):
    runner, kwargs = captured(torch.ones(2, requires_grad=True))
    (output,) = replayed(runner, kwargs)
    assert applied.call_count == 1
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
    [(REPLAY, with_one_token_changed(REPLAY)), (FORWARD, with_another_context)],
    ids=["replay", "forward"],
)
def test_one_changed_token_in_a_target_is_drifted(target, read):
    verdict = judge(GRAPH_REPLAY_WITHOUT_AUTOGRAD, read)
    assert verdict.state is State.DRIFTED
    assert target in verdict.reason
