"""Records of several parts, of which only some have log probs, made one request."""

from __future__ import annotations

from typing import Any

import pytest
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.ours.merged_logprobs import MERGED_LOGPROBS
from megatron_patch.testing.releases import context_parameters

from ..conftest import RELEASE, expected_state
from . import log_probs, stop_words
from .checks import needs, proof, state_of

MERGES = RELEASE >= Version("0.16")
LISTS = ("generated_log_probs", "generated_top_n_logprobs", "tpot")
OF_PROMPT = ("prompt_log_probs", "prompt_top_n_logprobs")

PROMPT = (5, 6, 7, 8)

pytestmark = pytest.mark.usefixtures("device")
only_merging = pytest.mark.skipif(not MERGES, reason=f"{RELEASE} has no records of requests")


def record_of(*parts: dict[str, Any]) -> Any:
    """A record whose parts have the fields given, made as the engine makes it."""
    import torch
    from megatron.core.inference import inference_request as requests
    from megatron.core.inference.sampling_params import SamplingParams

    request = requests.DynamicInferenceRequest(
        request_id=0,
        prompt_tokens=torch.tensor(PROMPT),
        sampling_params=SamplingParams(num_tokens_to_generate=8),
    )
    record = requests.DynamicInferenceRequestRecord.from_request(request)
    for number, fields in enumerate(parts):
        if number:
            record.checkpoint()
        for name, value in {"tpot": None, **fields}.items():
            setattr(record[-1], name, value)
    return record


def test_state():
    testing.build_engine(testing.EngineSpec())
    assert state_of(MERGED_LOGPROBS) is expected_state(
        State.APPLIED if MERGES else State.NOT_APPLICABLE
    )


@proof
def test_a_request_that_ends_as_soon_as_it_comes_back_is_merged():
    """It had found its stop word when it was suspended, and its last part has no token."""
    needs(stop_words.supported(), "stop words")
    model = testing.build_model(testing.EngineSpec())
    prompt, tokens = stop_words.prompt_without_repetition(model, 6)
    recompute = "kv_cache_management_mode" in context_parameters()
    fields = {"kv_cache_management_mode": "recompute"} if recompute else {}
    engine = testing.build_engine(testing.EngineSpec(**fields))

    def on_step(engine, step: int) -> None:  # type: ignore[no-untyped-def]
        if step == 3:
            testing.suspend(engine)
            testing.resume(engine)

    kept = stop_words.supported("detokenize_stop_sequence")
    sampling = {"return_log_probs": True, "skip_prompt_log_probs": True}
    sampling |= {"detokenize_stop_sequence": True} if kept else {}
    request = stop_words.request(prompt, tokens[2:3], 6)
    (record,) = testing.decode(engine, [request], on_step=on_step, sampling=sampling).records
    assert [len(part.generated_tokens) for part in record.requests] == [3, 0]
    merged = record.merge()
    assert merged.generated_tokens == list(tokens[:3])
    _, expected = log_probs.of(model, prompt, tokens[:3])
    assert merged.generated_log_probs[:3] == pytest.approx(expected, abs=1e-4)


@proof
@pytest.mark.parametrize("name", LISTS)
def test_a_part_without_a_token_says_nothing(name):
    needs(stop_words.supported(), "records of requests")
    some, none = {name: [1.0, 2.0], "generated_tokens": [3, 4]}, {name: None}
    more = {name: [5.0], "generated_tokens": [6]}
    for parts in (
        [none, some, more],
        [some, none, more],
        [some, more, none],
        [none, none, some, none, more, none],
    ):
        merged = record_of(*parts).merge()
        assert getattr(merged, name) == [1.0, 2.0, 5.0]
        assert merged.generated_tokens == [3, 4, 6]
    assert getattr(record_of(none, none).merge(), name) is None


@proof
@pytest.mark.parametrize("name", [*OF_PROMPT, "ttft"])
def test_what_a_request_has_for_its_prompt_is_that_of_the_first_part_that_has_it(name):
    needs(stop_words.supported(), "records of requests")
    needs(hasattr(record_of({})[0], name), f"{name} of a request")
    none = {name: None}
    one, other = {name: [1.0], "generated_tokens": [9]}, {name: [2.0], "generated_tokens": [8]}
    assert getattr(record_of(none, none, one, other).merge(), name) == [1.0]
    assert getattr(record_of(one, none).merge(), name) == [1.0]
    assert getattr(record_of(none).merge(), name) is None
    # With another prompt, to which it belongs.
    generated = {**none, "generated_tokens": [7]}
    assert getattr(record_of(generated, one).merge(), name) is None


@only_merging
def test_a_request_that_asked_for_none_has_none():
    generated = {"generated_tokens": [7], "generated_log_probs": None}
    other = {"generated_tokens": [8], "generated_log_probs": [1.0]}
    assert record_of(generated, other).merge().generated_log_probs is None


@only_merging
def test_unpatched_it_raises_or_drops_them(unpatched):
    none = {"generated_log_probs": None}
    some = {"generated_log_probs": [1.0], "generated_tokens": [3]}
    with pytest.raises(TypeError, match="'NoneType' object is not iterable"):
        record_of(some, none).merge()
    assert record_of(none, some).merge().generated_log_probs is None


@only_merging
def test_nothing_changes_where_all_parts_have_the_same(unpatched):
    def merged():  # type: ignore[no-untyped-def]
        some = {name: [1.0, 2.0] for name in (*LISTS, *OF_PROMPT)}
        found = []
        for parts in ([some], [some, some], [{}], [{}, {}], [{key: [] for key in some}] * 2):
            parts = [{"generated_tokens": [3, 4], **part} for part in parts]
            request = record_of(*parts).merge()
            found.append({k: str(v) for k, v in vars(request).items() if k in some})
        return found

    without = merged()
    megatron_patch.install()
    assert merged() == without
