"""What ``generate()`` returns for requests that are refused, on whichever release is installed."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from packaging.version import Version

from megatron_patch import testing
from megatron_patch.backports.ours.generate_refused_requests import GENERATE_REFUSED_REQUESTS
from megatron_patch.testing.releases import engine_class

from ..conftest import RELEASE
from .checks import assert_state_of_record, needs, proof

pytestmark = pytest.mark.usefixtures("device")

LONG, SHORT = " ".join(["1"] * 200), "1 2 3"


def statuses(engine: Any, prompts: list[str], num_tokens: int = 3) -> list[tuple[str, int]]:
    """Status and number of tokens of each record that ``generate()`` returns."""
    from megatron.core.inference.sampling_params import SamplingParams

    sampling = SamplingParams(num_tokens_to_generate=num_tokens, top_k=1, termination_id=-1)
    records = engine.generate(prompts, sampling)
    return [(record[-1].status.name, len(record[-1].generated_tokens)) for record in records]


def build() -> Any:
    testing.context_class()
    requests = importlib.import_module("megatron.core.inference.inference_request")
    needs(hasattr(requests, "DynamicInferenceRequestRecord"), "records of requests")
    return testing.build_engine(testing.EngineSpec())


def test_state():
    engine_class()
    assert_state_of_record(GENERATE_REFUSED_REQUESTS)


@proof
def test_a_prompt_that_is_too_long_is_returned():
    engine = build()
    assert statuses(engine, [LONG]) == [("FAILED", 0)]
    assert statuses(engine, [SHORT]) == [("COMPLETED", 3)]


@proof
@pytest.mark.parametrize("prompts", ["LL", "LS", "SL", "SLS", "LSL", "SSLL"])
def test_each_prompt_has_its_record_in_its_place(prompts):
    engine = build()
    given = {"L": LONG, "S": SHORT}
    expected = {"L": ("FAILED", 0), "S": ("COMPLETED", 3)}
    for _ in range(2):
        found = statuses(engine, [given[letter] for letter in prompts])
        assert found == [expected[letter] for letter in prompts]
    assert engine.requests == {}


def test_no_prompts_make_no_step():
    engine = build()
    engine.step_modern = None
    assert statuses(engine, []) == []


@pytest.mark.skipif(RELEASE < Version("0.16"), reason=f"{RELEASE} has no records")
def test_unpatched_nothing_is_returned(unpatched):
    engine = build()
    assert statuses(engine, [LONG]) == []
    assert statuses(engine, [SHORT]) == [("FAILED", 0), ("COMPLETED", 3)]
