"""What is copied before the CUDA graph of a layer runs, on whichever release is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.graph_input_copies import GRAPH_INPUT_COPIES
from megatron_patch.testing import graph_counts

from ..conftest import expected_state
from .checks import REQUESTS, assert_same_outputs, assert_state_of_record, proof, state_of
from .graph_runners import cuda_graphs

pytestmark = pytest.mark.usefixtures("no_other_graphs")

SPEC = testing.EngineSpec(
    num_layers=4, num_cuda_graphs=2, max_requests=16, cuda_graph_scope="layer"
)


@pytest.fixture
def no_other_graphs(device: Any) -> Iterator[None]:
    testing.drop_cuda_graphs()
    yield
    testing.drop_cuda_graphs()


class Copies(TorchDispatchMode):
    """Counts the copies between tensors that begin at the same address, and all others."""

    def __init__(self) -> None:
        super().__init__()
        self.onto_itself = self.others = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.overloadpacket is torch.ops.aten.copy_ and args[0].numel():
            if args[0].data_ptr() == args[1].data_ptr():
                self.onto_itself += 1
            else:
                self.others += 1
        return function(*args, **(kwargs or {}))


def test_state():
    testing.context_class()
    assert_state_of_record(GRAPH_INPUT_COPIES)


@proof
def test_no_layer_copies_its_input_onto_itself():
    engine = testing.build_engine(SPEC)
    with graph_counts.counted() as count, Copies() as copies:
        testing.decode(engine, REQUESTS, capture_logits=False)
    assert count.replays >= SPEC.num_layers * 10
    assert copies.onto_itself == 0
    # The first layer reads what the step has computed.
    assert copies.others >= count.replays // SPEC.num_layers


def test_tokens_and_logits_are_unchanged(unpatched):
    without = testing.decode(testing.build_engine(SPEC), REQUESTS)
    testing.drop_cuda_graphs()
    megatron_patch.install()
    assert_same_outputs(testing.decode(testing.build_engine(SPEC), REQUESTS), without)


@pytest.fixture
def applied() -> None:
    """What other releases do has other runners, and copies by the address alone."""
    testing.context_class()
    if state_of(GRAPH_INPUT_COPIES) is not expected_state(State.APPLIED):
        pytest.skip("not patched")


class Runner:
    """The runner of a graph that adds one to its input, with all that a replay reads of it."""

    def __init__(self, static: torch.Tensor) -> None:
        graphs = cuda_graphs()
        self.fwd_graph_input_surface = (static,)
        self.fwd_graph_output_surface = (torch.empty_like(static),)
        self.fwd_graph = self
        self.status = graphs._GraphStatus.FWD_READY
        self.fp8_enabled = self.fp4_enabled = False

    def replay(self) -> None:
        self.fwd_graph_output_surface[0].copy_(self.fwd_graph_input_surface[0] + 1)


def replayed(static: torch.Tensor, given: torch.Tensor) -> list[Any]:
    runner = Runner(static)
    with torch.inference_mode():
        (output,) = cuda_graphs()._CudagraphReplayNode.apply(runner, False, given)
    assert output.data_ptr() == runner.fwd_graph_output_surface[0].data_ptr()
    return output.tolist()  # type: ignore[no-any-return]


@pytest.mark.usefixtures("applied")
def test_what_is_at_its_place_is_read_there_and_all_else_is_copied():
    memory = torch.arange(4.0)
    static = memory.view(2, 2)
    assert replayed(static, static) == [[1, 2], [3, 4]]
    assert replayed(static, memory.view(2, 2)) == [[1, 2], [3, 4]]
    assert replayed(static, torch.full((2, 2), 5.0)) == [[6, 6], [6, 6]]
    assert memory.tolist() == [5, 5, 5, 5]


@pytest.mark.usefixtures("applied")
def test_another_view_of_the_same_memory_is_copied():
    memory = torch.arange(4.0)
    assert replayed(memory[::2][:2], memory[:2]) == [1, 2]
