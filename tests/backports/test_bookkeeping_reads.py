"""What the host does between two steps of the model, and what becomes of the requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.ours.bookkeeping_reads import BOOKKEEPING_READS, TARGET
from megatron_patch.judge import judge
from megatron_patch.verdicts import Verdict
from tools.benchmarking import selected

from ..conftest import RELEASE, not_in_source
from .bookkeeping import assert_same, start_alike, state
from .checks import (
    Operators,
    as_it_is,
    assert_patches_change_no_output,
    assert_same_outputs,
    assert_state_of_record,
    needs,
    proof,
    with_one_token_changed,
)

METHOD = "_dynamic_step_context_bookkeeping"

PATCHED = RELEASE >= Version("0.16")

ON_GPU = RELEASE < Version("0.18")

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} has no such bookkeeping")


def controller_class() -> Any:
    """Megatron's class of the target."""
    testing.context_class()
    from megatron.core.inference.text_generation_controllers import text_generation_controller

    return text_generation_controller.TextGenerationController


def test_state():
    controller_class()
    assert_state_of_record(BOOKKEEPING_READS)


# ------------------------------------------------------------------------ what it costs

TWO = (testing.Request((5, 6, 7, 8), 9), testing.Request((9, 10), 5))


class Bookkeeping:
    """Notes the operators of each call, up to the samples and altogether, and the results."""

    def __init__(self, engine: Any) -> None:
        self.results: list[dict[str, Any]] = []
        self.operators: list[Counter[str]] = []
        self.before_samples: list[Counter[str]] = []
        controller = engine.controller
        bookkeep, transfer = (
            getattr(controller, METHOD),
            getattr(controller, "_transfer_samples_to_cpu", None),
        )

        def noted(*args: Any) -> dict[str, Any]:
            with Operators() as operators:
                if transfer is not None:

                    def waiting(count: int) -> Any:
                        self.before_samples.append(Counter(operators.names))
                        return transfer(count)

                    controller._transfer_samples_to_cpu = waiting
                result = bookkeep(*args)
            self.operators.append(Counter(operators.names))
            self.results.append(result)
            return dict(result)

        setattr(controller, METHOD, noted)

    @classmethod
    def of(cls, requests: Any = TWO) -> Bookkeeping:
        """What is noted while an engine decodes ``requests``."""
        engine = testing.build_engine(testing.EngineSpec())
        noted = cls(engine)
        testing.decode(engine, requests)
        return noted


def looks(counts: Counter[str]) -> bool:
    """Whether requests that ended are looked for. In inference mode the operator is a whole one."""
    return counts["aten::nonzero"] + counts["aten::nonzero_numpy"] > 0


@proof
def test_a_step_in_which_no_request_ends_looks_for_none():
    needs(hasattr(controller_class(), METHOD), "a bookkeeping of its own after each step")
    noted = Bookkeeping.of()
    ended = [result["finished_request_ids"] for result in noted.results]
    assert [len(ids) for ids in ended] == [0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert {ids.dtype for ids in ended} == {torch.int32}
    assert [*map(looks, noted.operators)] == [len(ids) > 0 for ids in ended]


@only_patched
def test_unpatched_each_step_looks_for_some(unpatched):
    assert all(map(looks, Bookkeeping.of().operators))


@only_patched
@pytest.mark.skipif(ON_GPU, reason="all of it is on the GPU there")
def test_what_needs_no_samples_is_computed_before_they_are_waited_for(unpatched):
    def compared(counts: Counter[str]) -> int:
        return counts["aten::lt"] + counts["aten::less"]

    assert {*map(compared, Bookkeeping.of().before_samples)} == {0}
    megatron_patch.install()
    noted = Bookkeeping.of()
    assert {*map(compared, noted.before_samples)} == {*map(compared, noted.operators)} == {1}


@only_patched
@pytest.mark.skipif(not ON_GPU, reason="the host has all of it there")
def test_no_number_is_waited_for_alone(unpatched):
    """With the patch of this release's `update_requests()`, which may be another one."""

    def waits() -> set[int]:
        noted = Bookkeeping.of()
        return {
            counts["aten::_local_scalar_dense"]
            for counts, result in zip(noted.operators, noted.results, strict=True)
            if len(result["finished_request_ids"]) == 0
        }

    assert min(waits()) >= 3
    megatron_patch.install()
    assert waits() == {0}


# ------------------------------------------------------------------------ what it does


@pytest.fixture
def released(unpatched) -> dict[str, Callable[..., Any]]:
    """What the patch edits, without this patch but with all others, which may edit it too."""
    context_class = testing.context_class()
    owners = {
        METHOD: controller_class(),
        "update_requests": context_class,
        "evict_overflow_paused_requests": context_class,
    }
    with selected("-bookkeeping-reads"):
        found = {name: as_it_is(vars(owner)[name]) for name, owner in owners.items()}
    megatron_patch.install()
    assert vars(controller_class())[METHOD].__code__ is not found[METHOD].__code__
    return found


requests = st.lists(
    st.builds(
        testing.Request,
        prompt=st.integers(2, 40).map(lambda length: tuple(range(1, 1 + length))),
        num_tokens=st.integers(1, 16),
        arrival_step=st.integers(0, 8),
    ),
    min_size=1,
    max_size=6,
)

ENGINES: dict[str, dict[str, Any]] = {
    "plain": {},
    "few blocks": {"block_size_tokens": 4, "max_tokens": 192, "buffer_size_gb": 28e3 * 4 / 1024**3},
    "padded": {"num_cuda_graphs": 4, "max_requests": 16},
    "in chunks": {"enable_chunked_prefill": True, "block_size_tokens": 8, "max_tokens": 64},
    "speculative": {"num_speculative_tokens": 2, "materialize_only_last_token_logits": False},
}


class Observed:
    """An engine, what its bookkeeping answers, and its context after each step.

    Some requests are said to have met a stop word, by their ids.
    """

    def __init__(self, spec: testing.EngineSpec) -> None:
        self.engine = testing.build_engine(spec)
        self.seen: list[dict[str, object]] = []
        self.calls: list[list[int]] = []
        controller = self.engine.controller
        bookkeep = MethodType(getattr(type(controller), METHOD), controller)
        controller.set_stop_word_finished_ids_callback(self.stopped)

        def noted() -> Any:
            result = bookkeep()
            self.seen.append(dict(result))
            return result

        setattr(controller, METHOD, noted)

    def as_released(self, released: dict[str, Callable[..., Any]]) -> None:
        """Leave out the patch in this engine."""
        controller, context = self.engine.controller, self.engine.context
        bookkeep = MethodType(released[METHOD], controller)

        def noted() -> Any:
            result = bookkeep()
            self.seen.append(dict(result))
            return result

        setattr(controller, METHOD, noted)
        for name in ("update_requests", "evict_overflow_paused_requests"):
            setattr(context, name, MethodType(released[name], context))

    def stopped(self, ids: list[int]) -> set[int]:
        self.calls.append(ids)
        return {ids[-1]} if len(self.calls) % 5 == 0 else set()

    def run(self, batch: Any) -> testing.Decoded:
        del self.seen[:], self.calls[:]

        def note(engine: Any, step: int) -> None:
            self.seen.append(state(engine.context))

        return testing.decode(self.engine, batch, on_step=note, max_steps=400)


@only_patched
@pytest.mark.parametrize("name", ENGINES)
def test_engines_answer_the_same_after_each_step(released, name):
    spec = testing.EngineSpec(**ENGINES[name])
    try:
        without, patched = Observed(spec), Observed(spec)
    except testing.UnsupportedError as error:
        pytest.skip(str(error))
    without.as_released(released)
    start_alike(without.engine.context, patched.engine.context)
    seen: Counter[str] = Counter()

    @settings(
        max_examples=max(5, settings().max_examples // 20),
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(requests)
    def compare(batch):
        expected, outcome = without.run(batch), patched.run(batch)
        assert_same_outputs(outcome, expected)
        assert without.calls == patched.calls
        assert len(without.seen) == len(patched.seen)
        for one, other in zip(without.seen, patched.seen, strict=True):
            assert_same(one, other)
            ended = one.get("finished_request_ids")
            seen["ended" if ended is not None and len(ended) else "went on"] += 1

    compare()
    assert min(seen["ended"], seen["went on"]) > 5, seen


@only_patched
def test_tokens_and_logits_are_bit_identical(unpatched):
    assert_patches_change_no_output(testing.EngineSpec())


@only_patched
@not_in_source
def test_one_changed_token_in_the_target_is_drifted():
    judgement = judge(BOOKKEEPING_READS, with_one_token_changed(TARGET))
    assert judgement.verdict is Verdict.DRIFTED
    assert TARGET in judgement.reason
