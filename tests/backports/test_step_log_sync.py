"""What a step reads from the GPU for the log line, and what the log line says."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from packaging.version import Version
from torch.overrides import TorchFunctionMode

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.step_log_sync import FORWARD, STEP_LOG_SYNC
from megatron_patch.judge import judge
from megatron_patch.testing.releases import engine_class
from megatron_patch.verdicts import Verdict
from tools.benchmarking import selected

from ..conftest import RELEASE, expected_state, not_in_source
from .checks import REQUESTS, assert_same_outputs, needs, proof, state_of, with_one_token_changed

PATCHED = Version("0.16") <= RELEASE < Version("0.18")
ENGINE = FORWARD.partition(":")[0]

pytestmark = pytest.mark.usefixtures("device")
with_target = pytest.mark.skipif(
    RELEASE < Version("0.16"), reason=f"{RELEASE} has no async_forward"
)
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} does not read for the log alone")


EXPECTED = State.APPLIED if PATCHED else State.UPSTREAMED
if RELEASE < Version("0.16"):
    EXPECTED = State.NOT_APPLICABLE


def test_state():
    engine_class()
    assert state_of(STEP_LOG_SYNC) is expected_state(EXPECTED)


def log_every(engine, steps):
    name = "logging_step_interval"
    setattr(engine, name if hasattr(engine, name) else f"inference_{name}", steps)


class Reads(TorchFunctionMode):
    """Counts single values that are read from tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.Tensor.item
        return func(*args, **(kwargs or {}))


@dataclass
class Waits:
    """What the steps of a run waited for and read, and the step times that they reported."""

    events: int = 0
    counts: int = 0
    reads: int = 0
    tokens_per_step: list[int] = field(default_factory=list)
    decoded: testing.Decoded | None = None


def run(mocker, *, interval=0) -> Waits:
    engine = testing.build_engine(testing.EngineSpec())
    log_every(engine, interval)
    waits = Waits()

    def counted(owner, method, name, caller):
        function = getattr(owner, method)

        def call(*args, **kwargs):
            if sys._getframe(1).f_code.co_name == caller:
                setattr(waits, name, getattr(waits, name) + 1)
            return function(*args, **kwargs)

        mocker.patch.object(owner, method, call)

    allocator = getattr(engine.context, "kv_block_allocator", None)
    allocator = allocator or engine.context.block_allocator
    # Such a count also decides which requests pause: only calls of the log's caller are counted.
    counted(torch.cuda.Event, "synchronize", "events", caller="async_forward")
    if hasattr(allocator, "get_paused_used"):
        counted(type(allocator), "get_paused_used", "counts", caller="async_forward")
    with Reads() as reads:
        waits.decoded = testing.decode(engine, REQUESTS)
    waits.reads = reads.count
    mocker.stopall()
    return waits


@proof
def test_steps_that_are_not_logged_wait_for_no_event_and_count_no_blocks(mocker):
    needs(hasattr(engine_class(), "async_forward"), "a forward of its own in each step")
    waits = run(mocker)
    assert (waits.events, waits.counts) == (0, 0)


@only_patched
def test_unpatched_each_step_waits_for_an_event_and_counts_blocks(unpatched, mocker):
    waits = run(mocker)
    assert (waits.events, waits.counts) == (waits.decoded.steps,) * 2


@only_patched
def test_each_step_reads_two_values_less(unpatched, mocker):
    without = run(mocker)
    with selected("step-log-sync"):  # others of the series save reads too
        patched = run(mocker)
    assert patched.decoded.steps == without.decoded.steps
    assert without.reads - patched.reads == 2 * without.decoded.steps


@with_target
@pytest.mark.parametrize("interval", [1, 3])
def test_steps_that_are_logged_wait_and_count(interval, mocker):
    waits = run(mocker, interval=interval)
    logged = waits.decoded.steps // interval
    assert (waits.events, waits.counts) == (logged, logged)


@contextmanager
def fixed_clocks(mocker):
    """Have each log line show the same time of day and the same GPU time."""
    clock = SimpleNamespace(now=lambda: SimpleNamespace(strftime=lambda _: "12:34:56"))
    mocker.patch.object(sys.modules[ENGINE], "datetime", clock)
    mocker.patch.object(torch.cuda.Event, "elapsed_time", return_value=12.5)
    yield
    mocker.stopall()


def logged(caplog, mocker, *, writes_metrics=False) -> tuple[list[str], list[dict[str, float]]]:
    """The log lines of a run, and the metrics if any are written."""
    engine = testing.build_engine(testing.EngineSpec())
    log_every(engine, 3)
    metrics: list[dict[str, float]] = []
    if writes_metrics:
        writer = SimpleNamespace(
            __name__="wandb", log=lambda values, commit: metrics.append(values)
        )
        mocker.patch.object(sys.modules[ENGINE], "HAVE_WANDB", True)
        owner = engine if hasattr(engine, "metrics_writer") else engine.context
        owner.metrics_writer = writer
        engine.inference_step_offset = 0
    caplog.clear()
    with fixed_clocks(mocker), caplog.at_level(logging.INFO):
        testing.decode(engine, REQUESTS)
    lines = [record.getMessage() for record in caplog.records]
    return [line for line in lines if "blocks: a" in line], metrics


@only_patched
@pytest.mark.parametrize("writes_metrics", [False, True], ids=["log", "log and metrics"])
def test_log_lines_and_metrics_are_the_same(unpatched, writes_metrics, caplog, mocker):
    without = logged(caplog, mocker, writes_metrics=writes_metrics)
    megatron_patch.install()
    assert logged(caplog, mocker, writes_metrics=writes_metrics) == without
    lines, metrics = without
    assert len(lines) == 4
    assert all("time: 12.5" in line or "time: 0.01" in line for line in lines)
    assert len(metrics) == (4 if writes_metrics else 0)


@with_target
@pytest.mark.parametrize("interval", [0, 3])
def test_time_per_output_token_is_that_of_the_steps(interval, mocker):
    if interval == 0 and not PATCHED:
        pytest.skip(f"{RELEASE} takes no time in steps that are not logged")
    decoded = run(mocker, interval=interval).decoded
    for record, request in zip(decoded.records, REQUESTS, strict=True):
        (part,) = record.requests
        if PATCHED:
            assert len(part.tpot) == request.num_tokens
        assert all(seconds > 0 for seconds in part.tpot)
        assert sum(part.tpot) < sum(decoded.step_seconds)


@only_patched
def test_step_time_is_most_of_the_step(mocker):
    decoded = run(mocker).decoded
    (longest,) = decoded.records[0].requests
    # The first request is there from the first step to the last.
    assert decoded.steps == len(longest.tpot)
    assert sum(longest.tpot) > 0.5 * sum(decoded.step_seconds)


@only_patched
def test_tokens_and_logits_are_the_same(unpatched, mocker):
    without = run(mocker).decoded
    megatron_patch.install()
    patched = run(mocker).decoded
    assert_same_outputs(patched, without)


@only_patched
def test_the_samples_are_read_before_the_next_step_begins(mocker):
    # That is what makes the wait for the event needless: the copy waits for all of the step.
    engine = testing.build_engine(testing.EngineSpec())
    events: list[str] = []
    generate = engine.controller.async_generate_output_tokens_dynamic_batch

    class Reading(TorchFunctionMode):
        sample = None

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.tolist and args[0] is self.sample:
                events.append("read")
            return func(*args, **(kwargs or {}))

    reading = Reading()

    async def noted():
        events.append("step")
        result = await generate()
        reading.sample = result["sample"]
        return result

    engine.controller.async_generate_output_tokens_dynamic_batch = noted
    with reading:
        decoded = testing.decode(engine, REQUESTS)
    assert Counter(events) == {"step": decoded.steps, "read": decoded.steps}
    assert events == ["step", "read"] * decoded.steps


@only_patched
@not_in_source
def test_one_changed_token_in_the_target_is_drifted():
    judgement = judge(STEP_LOG_SYNC, with_one_token_changed(FORWARD))
    assert judgement.verdict is Verdict.DRIFTED
    assert FORWARD in judgement.reason
