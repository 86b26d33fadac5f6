"""When the host copies the sampling parameters of the requests from the GPU."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from megatron_patch import testing
from megatron_patch.backports.ours.request_metadata_copies import (
    REQUEST_METADATA_COPIES,
    TARGET,
)
from megatron_patch.judge import judge
from megatron_patch.testing.releases import engine_class
from megatron_patch.verdicts import Verdict

from ..conftest import RELEASE, not_in_source
from ..upstream import support
from .checks import (
    assert_patches_change_no_output,
    assert_state_of_record,
    needs,
    proof,
    with_one_token_changed,
)

PATCHED = Version("0.16") <= RELEASE < Version("0.18")

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} copies no metadata")

ENDLESS = testing.Request((5, 6, 7), 12)


def test_state():
    engine_class()
    assert_state_of_record(REQUEST_METADATA_COPIES)


def copied_labels(controller: Any, context: Any) -> list[str]:
    """What the host has a copy of."""
    held = getattr(controller, "_request_metadata", None)
    return [
        label
        for label, tensor in (held or {}).items()
        if tensor is not context.request_metadata[label]
    ]


class Copies:
    """An engine; what its controller copies of the requests in each step, by label."""

    def __init__(self, spec: testing.EngineSpec | None = None) -> None:
        self.engine = testing.build_engine(spec or testing.EngineSpec())
        self.controller, self.context = self.engine.controller, self.engine.context
        self.labels = copied_labels(self.controller, self.context)
        self.copied: list[list[str]] = []
        begin = self.controller._dynamic_step_context_init

        def noted(*args: Any, **kwargs: Any) -> Any:
            held = self.controller._request_metadata
            before = {label: held[label]._version for label in self.labels}
            result = begin(*args, **kwargs)
            self.copied.append(
                [label for label in self.labels if held[label]._version != before[label]]
            )
            for label in self.labels:
                rows = slice(None, self.context.total_request_count)
                of_requests = self.context.request_metadata[label]
                assert held[label][rows].equal(of_requests[rows].cpu()), label
            return result

        self.controller._dynamic_step_context_init = noted

    def run(self, *requests: testing.Request, **options: Any) -> list[list[str]]:
        """The labels copied in each step."""
        self.copied.clear()
        testing.decode(self.engine, requests, **options)
        return [*self.copied]


@proof
def test_a_step_that_changes_no_request_copies_nothing():
    spec = testing.EngineSpec()
    engine = testing.build_engine(spec)
    begins = hasattr(engine.controller, "_dynamic_step_context_init")
    needs(begins and copied_labels(engine.controller, engine.context), "metadata on the GPU alone")
    made = Copies(spec)
    steps = made.run(ENDLESS)
    assert steps[0] == made.labels
    assert steps[1:] == [[]] * (len(steps) - 1)


@only_patched
def test_unpatched_each_step_copies_all(unpatched):
    made = Copies()
    assert made.run(ENDLESS) == [made.labels] * 12
    assert len(made.labels) >= 5


@only_patched
def test_a_request_that_comes_or_moves_is_copied():
    made = Copies()
    late = testing.Request((9,), 3, arrival_step=4, sampling={"temperature": 0.5})
    steps = made.run(ENDLESS, late)
    assert [bool(labels) for labels in steps[:6]] == [True, False, False, False, True, False]
    assert set(map(tuple, filter(None, steps))) == {tuple(made.labels)}


@only_patched
@pytest.mark.parametrize("side", ["requests", "host"])
@pytest.mark.parametrize("way", ["in place", "through a view", "memory", "exchanged", "inference"])
def test_what_somebody_wrote_is_copied_again(side, way):
    made = Copies()

    def write(engine: Any, step: int) -> None:
        if step != 3:
            return
        owner = (
            made.context.request_metadata
            if side == "requests"
            else (made.controller._request_metadata)
        )
        tensor = owner["top_k"]
        if way == "in place":
            tensor.fill_(3)
        elif way == "through a view":
            tensor[:1] = 3
        elif way == "memory":
            tensor.data = torch.full_like(tensor, 3)
        elif way == "exchanged":
            owner["top_k"] = torch.full_like(tensor, 3)
        else:
            with torch.inference_mode():
                tensor.fill_(3)

    steps = made.run(ENDLESS, on_step=write)
    assert [labels for labels in steps[1:] if labels] == [["top_k"]]


@only_patched
def test_tensors_of_inference_mode_are_copied_in_each_step():
    made = Copies()
    tensors = made.context.request_metadata

    def exchange(engine: Any, step: int) -> None:
        if step == 3:
            with torch.inference_mode():
                tensors["top_k"] = tensors["top_k"].clone()

    steps = made.run(ENDLESS, on_step=exchange)
    copied = [labels for labels in steps if labels]
    assert copied[0] == made.labels
    assert len(copied) > 7
    assert copied[1:] == [["top_k"]] * (len(copied) - 1)


@only_patched
def test_nothing_is_kept_of_a_suspended_context():
    made = Copies(testing.EngineSpec(**support.deallocating()))
    made.run(ENDLESS)
    tensors = [*map(weakref.ref, made.context.request_metadata.values())]
    support.deallocate(made.context)
    vars(made.context).pop("request_metadata", None)
    for label in [*made.controller._request_metadata]:
        if label not in made.labels:  # an alias, which the release keeps
            del made.controller._request_metadata[label]
    gc.collect()
    assert [tensor() for tensor in tensors] == [None] * len(tensors)


@only_patched
def test_any_requests_are_sampled_with_their_own_parameters():
    """The host's rows are compared with those of the requests in each step."""
    made = Copies(testing.EngineSpec(max_requests=8, block_size_tokens=4, max_tokens=192))

    @settings(
        max_examples=max(5, settings().max_examples // 10),
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        st.lists(
            st.builds(
                testing.Request,
                prompt=st.integers(1, 12).map(lambda length: tuple(range(1, 1 + length))),
                num_tokens=st.integers(1, 12),
                arrival_step=st.integers(0, 9),
                sampling=st.fixed_dictionaries(
                    {"temperature": st.sampled_from([0.5, 1.0]), "top_k": st.integers(1, 5)}
                ),
            ),
            min_size=1,
            max_size=7,
        )
    )
    def decode(requests):
        made.run(*requests)
        assert any(made.copied)

    decode()


@only_patched
def test_tokens_and_logits_are_bit_identical(unpatched):
    assert_patches_change_no_output(testing.EngineSpec())


@only_patched
@not_in_source
def test_one_changed_token_in_the_target_is_drifted():
    judgement = judge(REQUEST_METADATA_COPIES, with_one_token_changed(TARGET))
    assert judgement.verdict is Verdict.DRIFTED
    assert TARGET in judgement.reason
