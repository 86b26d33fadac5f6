from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest
import torch

from megatron_patch.testing import standins


@pytest.fixture
def on_cpu(device: Any) -> None:
    """Skips where the stand-ins are not in use."""
    if device.type != "cpu":
        pytest.skip("torch.cuda is left alone on a machine with a CUDA device")


@pytest.mark.usefixtures("on_cpu")
class TestCudaOnCpu:
    @pytest.mark.parametrize("cuda", ["cuda", "cuda:0", torch.device("cuda", 1)])
    def test_cuda_devices_become_the_cpu(self, cuda: Any) -> None:
        tensor = torch.ones(2)
        for made in (
            torch.zeros(2, device=cuda),
            torch.empty_like(tensor, device=cuda),
            tensor.new_zeros(2, device=cuda),
            tensor.to(cuda),
            tensor.to(device=cuda, dtype=torch.float64),
            tensor.to(cuda, torch.float64, non_blocking=True),
        ):
            assert made.device == standins.CPU
        assert torch.nn.Linear(2, 2).to(cuda).weight.device == standins.CPU

    def test_memory_is_not_pinned(self) -> None:
        tensor = torch.zeros(2, pin_memory=True)
        assert not tensor.is_pinned()
        assert not torch.empty_like(tensor, device="cpu", pin_memory=True).is_pinned()
        assert tensor.pin_memory() is tensor
        assert tensor.cuda() is tensor

    def test_other_arguments_are_left_alone(self) -> None:
        assert torch.zeros(2, device="meta").device.type == "meta"
        assert torch.full((2,), 7, dtype=torch.int32).tolist() == [7, 7]
        assert torch.ones(2).to(torch.int64).dtype == torch.int64

    def test_what_a_backward_pass_calls_back_has_them_too(self) -> None:
        class Doubled(torch.autograd.Function):  # type: ignore[misc]
            @staticmethod
            def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
                return value * 2

            @staticmethod
            def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
                return gradient * torch.full((2,), 2.0, device="cuda")

        value = torch.ones(2, requires_grad=True)
        Doubled.apply(value).sum().backward()
        Doubled.apply(value).backward(torch.ones(2), retain_graph=True)
        assert value.grad is not None
        assert value.grad.tolist() == [4.0, 4.0]

    def test_other_threads_are_not_affected(self) -> None:
        errors: list[BaseException] = []

        def make() -> None:
            try:
                torch.zeros(2, device="cuda")
            except (AssertionError, RuntimeError) as error:
                errors.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        assert len(errors) == 1


@pytest.mark.usefixtures("on_cpu")
class TestTorchCuda:
    def test_says_that_there_is_no_cuda_device(self) -> None:
        assert not torch.cuda.is_available()

    def test_current_device_is_where_tensors_go(self) -> None:
        device: Any = torch.cuda.current_device()
        assert torch.zeros(2, device=device).device == standins.CPU
        torch.Generator(device=device)

    def test_nothing_is_asynchronous(self) -> None:
        stream, event = torch.cuda.Stream(), torch.cuda.Event()
        with torch.cuda.stream(stream):
            event.record(torch.cuda.current_stream())
            stream.wait_event(event)
            stream.wait_stream(torch.cuda.default_stream())
        torch.cuda.synchronize()
        stream.synchronize()
        event.wait()
        assert event.query()
        assert stream.query()
        assert stream.record_event().query()
        assert not torch.cuda.is_current_stream_capturing()

    def test_memory_statistics_are_zero(self) -> None:
        assert torch.cuda.memory_stats()["allocated_bytes.all.current"] == 0
        assert torch.cuda.memory_snapshot() == []

    def test_ranges_can_be_marked(self) -> None:
        from torch.cuda.nvtx import range_pop, range_push

        range_push("step")
        range_pop()


def test_events_tell_the_time_between_them() -> None:
    begin, end = standins.Event(enable_timing=True), standins.Event(enable_timing=True)
    with pytest.raises(ValueError, match="both events must be recorded"):
        begin.elapsed_time(end)
    begin.record()
    time.sleep(0.01)
    end.record()
    assert 10 <= begin.elapsed_time(end) < 10_000


def test_everything_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    before = dict(vars(torch.cuda)), dict(vars(torch.cuda.nvtx))

    with standins.installed():
        os.environ["SET_MEANWHILE"] = "1"
        assert os.environ["TRITON_INTERPRET"] == "1"

    assert (dict(vars(torch.cuda)), dict(vars(torch.cuda.nvtx))) == before
    assert "TRITON_INTERPRET" not in os.environ
    assert os.environ.pop("SET_MEANWHILE") == "1"
