"""The order of the bookkeeping transfer and of the next writes to its source.

Nothing is asynchronous on a CPU. There the tests note the order in which the real context issues
the copy, waits for it, and writes to what is copied. On a GPU they look at what arrives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.bookkeeping_transfer_sync import (
    BOOKKEEPING_TRANSFER_SYNC,
    TRANSFER,
)
from megatron_patch.judge import judge
from megatron_patch.verdicts import Verdict

from ..conftest import RELEASE, expected_state, not_in_source
from ..gpu.kernels import rounds_to_bfloat16, spec_of
from .checks import REQUESTS, assert_same_outputs, needs, proof, state_of, with_one_token_changed

PATCHED = Version("0.18") <= RELEASE < Version("0.19")

pytestmark = pytest.mark.usefixtures("device")
with_transfer = pytest.mark.skipif(
    RELEASE < Version("0.18"), reason=f"{RELEASE} has no transfer_bookkeeping_to_gpu"
)
only_patched = pytest.mark.skipif(
    not PATCHED, reason=f"{RELEASE} has no transfer that does not wait"
)

GRAPHS = {"num_cuda_graphs": 8, "max_requests": 32}


EXPECTED = State.APPLIED if PATCHED else State.UPSTREAMED
if RELEASE < Version("0.18"):
    EXPECTED = State.NOT_APPLICABLE


def test_state():
    testing.context_class()
    assert state_of(BOOKKEEPING_TRANSFER_SYNC) is expected_state(EXPECTED)


class Order(TorchDispatchMode):
    """Notes what happens to the pinned buffer of ``context``, in order.

    ``issued`` and ``ended`` are of its copy to the device, ``written`` is any write to the buffer
    or to a view of it by any operator.
    """

    def __init__(self, context):
        super().__init__()
        self.context = context
        self.events: list[str] = []

    def is_in_flight(self):
        return [event for event in self.events if event != "written"][-1:] == ["issued"]

    def ended(self):
        if self.is_in_flight():
            self.events.append("ended")

    def holds(self, value):
        buffer = getattr(self.context, "_cpu_bookkeeping_buf", None)
        if buffer is None or not isinstance(value, torch.Tensor):
            return False
        return value.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for index, argument in enumerate(func._schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            if argument.alias_info and argument.alias_info.is_write and self.holds(value):
                self.events.append("written")
        result = func(*args, **kwargs)
        if func is torch.ops.aten.copy_.default:
            target, source, non_blocking = (*args, False)[:3]
            view = self.context.gpu_view._buf.untyped_storage().data_ptr()
            if self.holds(source) and target.untyped_storage().data_ptr() == view:
                self.events.append("issued")
                if not kwargs.get("non_blocking", non_blocking):
                    self.ended()
        return result


@contextmanager
def noted(context, mocker) -> Iterator[list[str]]:
    """The events of the ``with`` block, waits for the device included."""
    order = Order(context)

    def and_note(function):
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            order.ended()
            return result

        return call

    mocker.patch.object(torch.cuda, "synchronize", and_note(torch.cuda.synchronize))
    for owner in (torch.cuda.Event, torch.cuda.Stream):
        mocker.patch.object(owner, "synchronize", and_note(owner.synchronize))
    with order:
        yield order.events
    mocker.stopall()


def written_in_flight(events: list[str]) -> int:
    """How often the buffer was written to between a copy and its end."""
    last, count = "ended", 0
    for event in events:
        if event == "written":
            count += last == "issued"
        else:
            last = event
    return count


def request(request_id):
    from megatron.core.inference.inference_request import DynamicInferenceRequest
    from megatron.core.inference.sampling_params import SamplingParams

    return DynamicInferenceRequest(
        request_id=request_id,
        prompt_tokens=torch.arange(1, 10, device="cpu"),
        sampling_params=SamplingParams(num_tokens_to_generate=4, termination_id=-1),
    )


# All that write to the buffer after the copy of a step has been issued.
WRITERS = {
    "transfer": lambda context: context.transfer_bookkeeping_to_gpu(),
    "next step": lambda context: context.initialize_attention_state(),
    "dummy step": lambda context: context.initialize_attention_state(
        is_expert_parallel_dummy_cuda_graph_step=True
    ),
    "add_request": lambda context: context.add_request(request(1)),
    "add dummy requests": lambda context: context.add_dummy_requests_parallel([request(1)]),
    "update_requests": lambda context: context.update_requests(
        torch.ones(1, dtype=torch.int32, device="cpu"), torch.tensor([3], device="cpu")
    ),
    "reset": lambda context: context.reset(),
    "caller": lambda context: context.token_to_input_ids.fill_(1),
}


def events_of(write, mocker) -> list[str]:
    """What happens to the buffer in a step and in ``write`` after it."""
    context = testing.build_context(testing.EngineSpec(num_cuda_graphs=2))
    context.add_request(request(0))
    with noted(context, mocker) as events:
        context.initialize_attention_state()
        assert "issued" in events
        step = len(events)
        write(context)
    assert "written" in events[step:]
    return events


@proof
@pytest.mark.parametrize("name", ["transfer", "next step", "update_requests"])
def test_the_next_write_comes_after_the_copy(name, mocker):
    context = testing.build_context(testing.EngineSpec())
    needs(hasattr(context, "_cpu_bookkeeping_buf"), "a buffer that is copied to the GPU")
    assert written_in_flight(events_of(WRITERS[name], mocker)) == 0


@with_transfer
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_the_copy_has_ended_before_the_buffer_is_written_to(write, mocker):
    assert written_in_flight(events_of(write, mocker)) == 0


@only_patched
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_unpatched_the_buffer_is_written_to_during_the_copy(unpatched, write, mocker):
    assert written_in_flight(events_of(write, mocker)) > 0


def suspending(engine, step):
    if step in (2, 5):
        testing.suspend(engine)
        testing.resume(engine)


def events_of_an_engine(use, mocker, **fields) -> list[str]:
    engine = testing.build_engine(testing.EngineSpec(**fields))
    with noted(engine.context, mocker) as events:
        use(engine)
    assert events.count("issued") > 1
    return events


def create_cuda_graphs(engine):
    # Without graphs in the model, the engine does all of it except to capture.
    engine.cuda_graph_impl = "local"
    engine.inference_cuda_graph_scope = type(engine.inference_cuda_graph_scope).layer
    engine.create_cuda_graphs()


def dummy_steps(engine):
    for _ in range(3):
        engine.controller.dummy_forward()


# Without waiting, and without reading anything back, the engine goes on to the next write.
RACY = {"graph warm-up": create_cuda_graphs, "dummy steps": dummy_steps}


@with_transfer
@pytest.mark.parametrize("use", RACY.values(), ids=RACY)
def test_an_engine_waits_for_each_copy(use, mocker):
    assert written_in_flight(events_of_an_engine(use, mocker, **GRAPHS)) == 0


@only_patched
@pytest.mark.parametrize("use", RACY.values(), ids=RACY)
def test_unpatched_an_engine_waits_for_none(unpatched, use, mocker):
    assert written_in_flight(events_of_an_engine(use, mocker, **GRAPHS)) > 0


@with_transfer
@pytest.mark.parametrize("mode", ["persist", "offload", "recompute"])
def test_a_decode_with_suspensions_waits_for_each_copy(mode, mocker):
    def use(engine):
        testing.decode(engine, REQUESTS, on_step=suspending)

    # Megatron itself cannot capture its graphs again with requests in an offloaded cache.
    graphs = None if mode == "offload" else 2
    events = events_of_an_engine(use, mocker, kv_cache_management_mode=mode, num_cuda_graphs=graphs)
    assert written_in_flight(events) == 0


@only_patched
@pytest.mark.parametrize("fields", [{}, {"num_cuda_graphs": 2}], ids=["eager", "padded"])
def test_where_nothing_is_late_tokens_and_logits_are_the_same(unpatched, fields):
    spec = testing.EngineSpec(**fields)
    without = testing.decode(testing.build_engine(spec), REQUESTS)
    megatron_patch.install()
    patched = testing.decode(testing.build_engine(spec), REQUESTS)
    assert_same_outputs(patched, without)


@with_transfer
def test_what_arrives_is_the_buffer():
    context = testing.build_context(testing.EngineSpec())
    context.add_request(request(0))
    context.initialize_attention_state()
    assert context.gpu_view._buf.cpu().equal(context._cpu_bookkeeping_buf.cpu())
    assert context.gpu_view.token_to_input_ids[:9].tolist() == list(range(1, 10))


@only_patched
@not_in_source
def test_one_changed_token_in_the_target_is_drifted():
    judgement = judge(BOOKKEEPING_TRANSFER_SYNC, with_one_token_changed(TRANSFER))
    assert judgement.verdict is Verdict.DRIFTED
    assert TRANSFER in judgement.reason


# ------------------------------------------------------------------------ on a GPU

LATE = 5_000_000  # cycles that the GPU is behind, some milliseconds


@contextmanager
def on(stream_kind):
    if stream_kind == "current":
        yield
    else:
        with torch.cuda.stream(torch.cuda.Stream()):
            yield


def times_overwritten(tries, stream_kind="current") -> int:
    """How often the GPU got values that the host wrote only after the transfer had returned."""
    context = testing.build_context(testing.EngineSpec())
    context.initialize_attention_state()
    torch.cuda.synchronize()
    count = 0
    for value in range(1, tries + 1):
        context.token_to_input_ids.fill_(value)
        with on(stream_kind):
            torch.cuda._sleep(LATE)
            context.transfer_bookkeeping_to_gpu()
        context.token_to_input_ids.fill_(-1)
        torch.cuda.synchronize()
        count += bool((context.gpu_view.token_to_input_ids != value).any())
    return count


@pytest.mark.gpu
@only_patched
def test_unpatched_a_late_gpu_gets_what_was_written_afterwards(cuda_device, unpatched):
    tries = 20
    assert times_overwritten(tries) == tries


@pytest.mark.gpu
@with_transfer
@pytest.mark.parametrize("stream_kind", ["current", "another"])
def test_a_late_gpu_gets_what_was_there_in_1000_tries(cuda_device, stream_kind):
    assert times_overwritten(1000, stream_kind) == 0


@pytest.mark.gpu
@with_transfer
def test_warm_up_of_many_graphs_and_dummy_steps_behind_a_late_gpu(cuda_device):
    fields = {"max_requests": 128, "max_tokens": 128}
    engine = testing.build_engine(spec_of(num_cuda_graphs=16, **fields))  # warms up
    assert len(engine.context.cuda_graph_batch_dimensions_list) >= 8
    requests = [
        testing.Request(
            prompt=tuple(range(1, 3 + index % 5)), num_tokens=4 + index % 7, arrival_step=index // 4
        )
        for index in range(21)
    ]
    first = testing.decode(engine, requests)
    for _ in range(50):
        torch.cuda._sleep(LATE)
        engine.controller.dummy_forward()
    torch.cuda.synchronize()
    again = testing.decode(engine, requests)
    assert first.tokens == again.tokens
    if not rounds_to_bfloat16():
        model = testing.build_model(spec_of(**fields))
        assert first.tokens == testing.reference_decode(model, requests)
