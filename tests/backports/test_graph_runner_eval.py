"""How often a replay visits the modules of its layer.

No graph is captured on a CPU: manager and runner are Megatron's, and nothing is replayed.
"""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version

import megatron_patch
from megatron_patch import State
from megatron_patch.backports.upstream.graph_runner_eval import CALL, GRAPH_RUNNER_EVAL
from megatron_patch.judge import judge
from megatron_patch.verdicts import Verdict

from ..conftest import RELEASE, SOURCE, expected_state, not_in_source
from .checks import needs, proof, state_of, with_one_token_changed
from .graph_runners import cuda_graphs, manager_of, replay, runner_of

PATCHED = Version("0.15") <= RELEASE < Version("0.17")

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} visits them once")


@pytest.fixture(scope="module")
def graphs(device):
    """Megatron's module of CUDA graphs."""
    return cuda_graphs()


def test_state(graphs):
    expected = expected_state(State.APPLIED) if PATCHED else State.UPSTREAMED
    if RELEASE < Version("0.15"):
        expected = State.NOT_APPLICABLE
    assert state_of(GRAPH_RUNNER_EVAL) is expected


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())


@pytest.fixture
def captured(device, mocker):
    """A manager whose layer has a graph, the layer, and the layer's runner."""
    layer = Layer()
    runner = runner_of((), {})
    runner.base_module = layer
    return manager_of(runner, mocker), layer, runner


def visited(mocker, manager, layer) -> int:
    """How many modules one replay visits."""
    spy = mocker.spy(torch.nn.Module, "train")
    replay(manager, layer)
    mocker.stop(spy)
    return spy.call_count


def modes(*modules):
    return {part.training for module in modules for part in module.modules()}


@proof
def test_a_replay_visits_no_module(graphs, captured, mocker):
    known = hasattr(graphs._CudagraphGlobalRecord, "cudagraph_inference_record")
    needs(known, "graphs that are captured for inference")
    manager, layer, runner = captured
    runner.eval()
    assert visited(mocker, manager, layer) == 0
    assert modes(layer, runner) == {False}


@only_patched
def test_unpatched_each_replay_visits_all_modules(unpatched, captured, mocker):
    manager, layer, runner = captured
    runner.eval()
    for _ in range(3):
        assert visited(mocker, manager, layer) == len(list(runner.modules())) == 5


@only_patched
def test_a_layer_in_training_mode_is_replayed_in_evaluation_mode(captured):
    manager, layer, runner = captured
    for module in (runner, layer, runner, layer):  # the layer is a part of its runner
        module.train()
        assert True in modes(module)
        replay(manager, layer)
        assert modes(layer, runner) == {False}


@only_patched
def test_a_part_of_a_layer_in_training_mode_is_put_into_evaluation_mode(captured):
    manager, layer, runner = captured
    runner.eval()
    layer.parts[1].train()
    replay(manager, layer)
    assert modes(layer, runner) == {False}


@only_patched
def test_an_eval_of_its_own_is_called_before_each_replay(captured):
    """Such as the `eval()` of a module that merges low-rank weights in it."""
    manager, layer, runner = captured
    runner.eval()

    class Merging(torch.nn.Dropout):
        calls = 0

        def train(self, mode=True):
            self.calls += 1
            return super().train(mode)

    layer.parts.append(Merging().eval())
    before = layer.parts[2].calls
    replay(manager, layer)
    replay(manager, layer)
    assert layer.parts[2].calls == before + 2


@only_patched
@pytest.mark.skipif(SOURCE, reason="the source itself is patched")
def test_the_modes_are_those_that_the_unpatched_manager_leaves(unpatched, captured):
    manager, layer, runner = captured

    def sequence():
        seen = []
        part = layer.parts[1].train
        for train in (runner.train, layer.train, runner.eval, layer.eval, layer.train, part):
            train()
            replay(manager, layer)
            seen.append([part.training for part in runner.modules()])
        return seen

    without = sequence()
    megatron_patch.install()
    assert sequence() == without


@not_in_source
@only_patched
def test_one_changed_token_in_the_target_is_drifted():
    judgement = judge(GRAPH_RUNNER_EVAL, with_one_token_changed(CALL))
    assert judgement.verdict is Verdict.DRIFTED
    assert CALL in judgement.reason
