"""``request-metadata-sync``: each request is sampled with its own parameters on a late GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from packaging.version import Version
from torch.overrides import TorchFunctionMode

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.request_metadata_sync import GENERATE, REQUEST_METADATA_SYNC
from megatron_patch.judge import judge
from megatron_patch.verdicts import Verdict

from ..conftest import RELEASE, expected_state, not_in_source
from ..gpu.kernels import spec_of
from .checks import needs, proof, state_of, with_one_token_changed

AFFECTED = Version("0.16") <= RELEASE < Version("0.18")
affected = pytest.mark.skipif(not AFFECTED, reason=f"{RELEASE} reads no copy before it has ended")


def test_state(device):
    testing.build_engine(testing.EngineSpec())  # which imports what is patched
    fixed = State.UPSTREAMED if RELEASE >= Version("0.18") else State.NOT_APPLICABLE
    expected = expected_state(State.APPLIED) if AFFECTED else fixed
    assert state_of(REQUEST_METADATA_SYNC) is expected


class LateCopies(TorchFunctionMode):
    """A GPU that copies nothing to the host until somebody waits for it.

    Copies that are said not to block are held back, with what they would have copied, until an
    event is waited for that was recorded after them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.waiting: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.copy_ and kwargs.get("non_blocking"):
            target, source = args
            self.begun += 1
            self.waiting.append((self.begun, target, source.clone()))
            return target
        return func(*args, **kwargs)

    def wait(self, number: int) -> None:
        """End the copies up to this one."""
        for begun, target, source in self.waiting:
            if begun <= number:
                target.copy_(source)
        self.waiting = [entry for entry in self.waiting if entry[0] > number]


@contextmanager
def late_copies() -> Iterator[LateCopies]:
    """Hold copies back until a step ends, which reads its tokens from the GPU and waits for all."""
    mode = LateCopies()

    class Event(torch.cuda.Event):  # type: ignore[misc] # the stand-in
        def record(self, stream=None):
            super().record(stream)
            self.number = mode.begun

        def synchronize(self):
            super().synchronize()
            mode.wait(self.number)

    with mock.patch.object(torch.cuda, "Event", Event), mode:
        yield mode


#: One request that is sampled, among greedy ones that come and go.
SAMPLED = {"temperature": 0.7, "top_k": 0, "top_p": 0.9}
REQUESTS = (
    testing.Request(prompt=(5, 6, 7, 8), num_tokens=3, sampling={"return_log_probs": True}),
    testing.Request(prompt=(9, 10), num_tokens=6, arrival_step=2, sampling=SAMPLED),
    testing.Request(
        prompt=(1, 2, 3), num_tokens=4, arrival_step=4, sampling={"return_log_probs": True}
    ),
)
SPECS = {
    "eager": testing.EngineSpec(materialize_only_last_token_logits=False),
    "padded": testing.EngineSpec(materialize_only_last_token_logits=False, num_cuda_graphs=2),
}


def decode(spec, seen, *, late=False):  # type: ignore[no-untyped-def]
    """Tokens and log probs; ``seen`` gets the parameters that each step samples with."""
    engine = testing.build_engine(spec)
    controller = engine.controller
    bookkeeping = controller._dynamic_step_sample_bookkeeping

    def noted():
        bookkeeping()
        buckets = list(controller._torch_sampling_buckets)
        controller._torch_sampling_buckets = buckets
        seen.append(sorted((tuple(indices), *rest) for indices, *rest in buckets))

    controller._dynamic_step_sample_bookkeeping = noted
    if not late:
        decoded = testing.decode(engine, REQUESTS)
    else:
        with late_copies() as mode:
            decoded = testing.decode(
                engine, REQUESTS, on_step=lambda engine, step: mode.wait(mode.begun)
            )
    parts = [part for record in decoded.records for part in record.requests]
    return decoded.tokens, [part.generated_log_probs for part in parts]


@pytest.fixture
def held_back(device):
    """Skip on a GPU: on a CPU the tests themselves hold the copies back."""
    if device.type != "cpu":
        pytest.skip("needs a CPU, on which the copies can be held back")


@proof
@pytest.mark.parametrize("name", SPECS)
def test_the_parameters_of_the_step_are_there_before_they_are_read(held_back, name):
    controller = testing.build_engine(SPECS["eager"]).controller
    needs(hasattr(controller, "_torch_sampling_buckets"), "parameters that are copied to the host")
    on_time: list[object] = []
    late: list[object] = []
    expected = decode(SPECS[name], on_time)
    assert decode(SPECS[name], late, late=True) == expected
    assert late == on_time


@affected
@pytest.mark.parametrize("name", SPECS)
def test_on_a_late_gpu_each_request_is_sampled_with_its_own_parameters(held_back, name):
    on_time: list[object] = []
    late: list[object] = []
    assert decode(SPECS[name], late, late=True) == decode(SPECS[name], on_time)
    assert late == on_time


@affected
@not_in_source
@pytest.mark.parametrize("name", SPECS)
def test_unpatched_parameters_are_those_of_the_step_before(held_back, unpatched, name):
    on_time: list[object] = []
    late: list[object] = []
    decode(SPECS[name], on_time)
    # A temperature of zero, or top-k and top-p at once, ends the engine.
    with contextlib.suppress(RuntimeError, AssertionError):
        decode(SPECS[name], late, late=True)
    assert late != on_time[: len(late)]


@not_in_source
@affected
def test_one_changed_token_in_the_target_is_drifted(device):
    judgement = judge(REQUEST_METADATA_SYNC, with_one_token_changed(GENERATE))
    assert judgement.verdict is Verdict.DRIFTED


@affected
@pytest.mark.gpu
def test_a_late_gpu_samples_with_the_parameters_of_the_step(cuda_device):
    """The stream is always behind the host; what is read is the step's own all the same."""
    megatron_patch.install()
    engine = testing.build_engine(spec_of(materialize_only_last_token_logits=False))
    controller, context = engine.controller, engine.context
    bookkeeping, attention = (
        controller._dynamic_step_sample_bookkeeping,
        context.initialize_attention_state,
    )
    wrong = []

    def late(*args, **kwargs):
        result = attention(*args, **kwargs)
        torch.cuda._sleep(20_000_000)  # about 10 ms
        return result

    def compared():
        active = slice(context.paused_request_count, context.total_request_count)
        seen = controller._request_metadata["temperature"][active].tolist()
        bookkeeping()
        wrong.append(seen != context.request_metadata["temperature"][active].tolist())

    context.initialize_attention_state = late
    controller._dynamic_step_sample_bookkeeping = compared
    testing.decode(engine, REQUESTS)
    assert wrong
    assert not any(wrong)
