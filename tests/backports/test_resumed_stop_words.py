"""Requests that come back, after an eviction or a suspension, and their stop words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.ours.resumed_stop_words import RESUMED_STOP_WORDS
from megatron_patch.testing.releases import context_parameters

from ..conftest import RELEASE, expected_state
from . import log_probs, stop_words
from .checks import needs, proof, state_of

STOPS = RELEASE >= Version("0.16")
TRIMS = RELEASE >= Version("0.17")
ASYNC = RELEASE >= Version("0.19")

PROMPT = (5, 6, 7, 8)
NUM_TOKENS = stop_words.NUM_TOKENS

pytestmark = pytest.mark.usefixtures("device")
only_stopping = pytest.mark.skipif(not STOPS, reason=f"{RELEASE} has no stop words")
only_trimming = pytest.mark.skipif(not TRIMS, reason=f"{RELEASE} takes no stop word out")


def spec(**fields: Any) -> testing.EngineSpec:
    """An engine that computes again what was suspended. 0.16 does nothing else by default."""
    if "kv_cache_management_mode" in context_parameters():
        fields.setdefault("kv_cache_management_mode", "recompute")
    return testing.EngineSpec(**fields)


@pytest.fixture(scope="module")
def model(device):  # type: ignore[no-untyped-def]
    return testing.build_model(testing.EngineSpec())


@pytest.fixture(scope="module")
def tokens(model):  # type: ignore[no-untyped-def]
    (found,) = testing.reference_decode(model, [testing.Request(PROMPT, NUM_TOKENS)])
    return found


def sampling_of(kept: bool, **sampling: Any) -> dict[str, Any]:
    """0.16 keeps stop words, and later releases if they are told to."""
    known = stop_words.supported("detokenize_stop_sequence")
    return {**sampling, "detokenize_stop_sequence": kept} if known else sampling


def suspended_at(*at: int):  # type: ignore[no-untyped-def]
    def on_step(engine, step: int) -> None:  # type: ignore[no-untyped-def]
        if step in at:
            testing.suspend(engine)
            testing.resume(engine)

    return on_step


def decode(engine, requests, at=(), **sampling):  # type: ignore[no-untyped-def]
    """The records of requests during which the engine is suspended before some steps."""
    decoded = testing.decode(
        engine, requests, on_step=suspended_at(*at), capture_logits=False, sampling=sampling
    )
    assert engine.context.total_request_count == 0
    return decoded.records


def generated(record) -> list[int]:  # type: ignore[no-untyped-def]
    return [token for part in record.requests for token in part.generated_tokens]


def block_gb(blocks: int) -> float:
    """GiB of so many KV blocks of four tokens, of the model of the tests."""
    spec = testing.EngineSpec()
    return (blocks + 0.5) * 2 * spec.num_layers * 4 * spec.hidden_size * 4 / 1024**3


def evicting_engine(**options: Any) -> Any:
    """An engine whose KV cache is too small for three requests of twenty tokens and more."""
    options = {**options}
    blocks = 14
    if "paused_buffer_size_gb" in context_parameters():
        options["paused_buffer_size_gb"] = block_gb(0)
    else:  # it sets aside those of the longest request
        blocks += 32
    return testing.build_engine(
        testing.EngineSpec(block_size_tokens=4, buffer_size_gb=block_gb(blocks), options=options)
    )


def test_state():
    testing.build_engine(testing.EngineSpec())
    assert state_of(RESUMED_STOP_WORDS) is expected_state(
        State.APPLIED if STOPS else State.NOT_APPLICABLE
    )


@proof
@pytest.mark.parametrize(("first", "count", "at"), [(2, 2, 3), (1, 3, 2), (1, 3, 3)])
def test_a_stop_word_that_begins_before_a_suspension_ends_a_request(
    model, tokens, first, count, at
):
    needs(stop_words.supported(), "stop words")
    word = tokens[first : first + count]
    for kept in (False, True) if stop_words.supported("detokenize_stop_sequence") else (True,):
        request = stop_words.request(PROMPT, word)
        (record,) = decode(testing.build_engine(spec()), [request], [at], **sampling_of(kept))
        assert len(record.requests) == 2
        assert generated(record) == stop_words.answer(tokens, word, kept)


@proof
def test_a_request_that_was_evicted_ends_at_its_stop_word(model):
    needs(stop_words.supported(), "stop words")
    prompts = [tuple(range(first, first + 20)) for first in (1, 30, 60)]
    alone = testing.reference_decode(model, [testing.Request(p, 14) for p in prompts])
    requests = [
        stop_words.request(prompt, found[10:11], 14)
        for prompt, found in zip(prompts, alone, strict=True)
    ]
    engine = evicting_engine()
    records = decode(engine, requests, **sampling_of(True))
    assert engine.evicted_request_count > 0
    for request, found, record in zip(requests, alone, records, strict=True):
        word = stop_words.word_of(request)
        assert generated(record) == stop_words.answer(found, word, kept=True)


@only_stopping
@pytest.mark.parametrize("kept", [False, True])
def test_wherever_it_is_suspended_all_is_as_without(model, tokens, kept):
    """For all stop words, with log probs of the tokens that are left."""
    kept |= not TRIMS
    for at in (*((step,) for step in range(1, 9)), (2, 3), (1, 3, 5)):
        requests = [*stop_words.all_places(PROMPT, tokens)]
        sampling = sampling_of(
            kept, return_log_probs=True, skip_prompt_log_probs=True, top_n_logprobs=2
        )
        fields = {"materialize_only_last_token_logits": False, "max_requests": 28}
        engine = testing.build_engine(spec(max_tokens=256, **fields))
        records = decode(engine, requests, at, **sampling)
        for request, record in zip(requests, records, strict=True):
            found = generated(record)
            assert found == stop_words.answer(tokens, stop_words.word_of(request), kept)
            merged = record.merge()
            assert merged.generated_tokens == found
            _, expected = log_probs.of(model, PROMPT, found)
            assert merged.generated_log_probs == pytest.approx(expected, abs=1e-4)
            likely = [max(top, key=top.get) for top in merged.generated_top_n_logprobs]
            assert likely == [str(token) for token in found]


@only_stopping
@pytest.mark.parametrize("kept", [False, True])
def test_a_request_that_comes_back_in_chunks_ends_all_the_same(model, kept):
    """The request had found its stop word when it was suspended."""
    kept |= not TRIMS
    prompt = tuple(i * i % 127 for i in range(62))
    (tokens,) = testing.reference_decode(model, [testing.Request(prompt, 9)])
    for first, count in [(3, 1), (2, 2), (3, 3)]:
        word = tokens[first : first + count]
        # After the step that finds the stop word, and one step earlier and later.
        for at in range(first, first + count + 2):
            engine = testing.build_engine(spec(enable_chunked_prefill=True))
            (record,) = decode(
                engine, [stop_words.request(prompt, word)], [at], **sampling_of(kept)
            )
            assert generated(record) == stop_words.answer(tokens, word, kept)


@pytest.mark.skipif(not ASYNC, reason=f"{RELEASE} has no asynchronous scheduling")
def test_so_it_does_with_asynchronous_scheduling(model):
    prompts = [tuple(range(first, first + 20)) for first in (1, 30, 60)]
    alone = testing.reference_decode(model, [testing.Request(p, 14) for p in prompts])
    for first in range(13):
        engine = evicting_engine(async_sched_mode="async")
        requests = [
            stop_words.request(prompt, found[first : first + 2], 14)
            for prompt, found in zip(prompts, alone, strict=True)
        ]
        records = decode(engine, requests)
        assert engine.evicted_request_count > 0 or first < 10
        for request, found, record in zip(requests, alone, records, strict=True):
            word = stop_words.word_of(request)
            assert generated(record) == stop_words.answer(found, word, kept=False)


#: Fields that a request that comes back takes over from the one before.
KEPT = {"request_id", "policy_epoch", "event_add_engine", "stop_word_ids", "status"}
#: Fields that differ, or are computed or noted anew.
AFRESH = {
    *("prompt", "prompt_tokens", "remaining_prompt_tokens", "sampling_params"),
    *("generated_text", "generated_tokens", "generated_length", "generated_log_probs"),
    *("prompt_log_probs", "prompt_top_n_logprobs", "generated_top_n_logprobs"),
    *("finished_chunk_token_count", "kv_cache_epoch", "routing_indices", "cg_wait_iters"),
    *("latency", "tpot", "ttft", "events", "num_cached_tokens", "prompt_length"),
}
#: Fields of upstream's main, which accounts for blocks otherwise.
OF_THE_PREFIX_CACHE = {"block_size_tokens", "enable_prefix_caching", "precomputed_block_hashes"}
#: The dynamic engine neither sets nor reads these.
OF_OTHER_ENGINES = {
    *("arrival_time", "encoder_prompt", "inference_parameters"),
    *("segments", "generated_segments", "generated_sequence_lengths"),
}


@only_stopping
def test_it_is_known_of_each_field_whether_a_request_keeps_it():
    from megatron.core.inference.inference_request import DynamicInferenceRequest

    names = {field.name for field in dataclasses.fields(DynamicInferenceRequest)}
    known = KEPT | AFRESH | OF_THE_PREFIX_CACHE | OF_OTHER_ENGINES
    assert names - known == set()


def checkpointed() -> tuple[Any, Any]:
    """A request in which the fields are set, and the one that goes on for it."""
    import torch
    from megatron.core.inference import inference_request as requests
    from megatron.core.inference.sampling_params import SamplingParams

    sampling = SamplingParams(num_tokens_to_generate=8, stop_words=["7"], termination_id=3)
    sampling.add_attributes({"min_length": 4})
    old = requests.DynamicInferenceRequest(
        request_id=5, prompt_tokens=torch.tensor([1, 2, 3]), sampling_params=sampling
    )
    for field in dataclasses.fields(old):
        if getattr(old, field.name) is None:
            setattr(old, field.name, [(0, 1)])
    old.status = requests.Status.ACTIVE_AND_GENERATING_TOKENS
    old.stop_word_ids, old.generated_tokens = [[7]], [9, 11]
    record = requests.DynamicInferenceRequestRecord.from_request(old)
    record.checkpoint()
    return old, record[-1]


@only_stopping
def test_a_request_that_comes_back_is_what_it_was():
    old, new = checkpointed()
    for name in KEPT & vars(old).keys():
        assert getattr(new, name) == getattr(old, name), name
    expected = {**vars(old.sampling_params), "num_tokens_to_generate": 6}
    assert vars(new.sampling_params) == expected
    assert new.prompt_tokens.tolist() == [1, 2, 3, 9, 11]
    for name in (AFRESH | OF_THE_PREFIX_CACHE) & vars(old).keys():
        assert str(getattr(new, name)) != str(getattr(old, name)) or not getattr(new, name), name


@only_stopping
def test_unpatched_it_forgets(unpatched):
    old, new = checkpointed()
    forgotten = {name for name in KEPT & vars(old).keys() if not getattr(new, name)}
    assert forgotten == {"stop_word_ids", "status"}
    assert not hasattr(new.sampling_params, "min_length")


@only_stopping
def test_unpatched_a_request_goes_on_beyond_its_stop_word(unpatched, tokens):
    request = stop_words.request(PROMPT, tokens[2:4])
    (record,) = decode(testing.build_engine(spec()), [request], [3])
    assert generated(record) == list(tokens)


@only_stopping
def test_nothing_changes_without_stop_words(unpatched):
    requests = [stop_words.request(PROMPT, (), 7), stop_words.request((9, 10), (), 5)]

    def answers():  # type: ignore[no-untyped-def]
        engine = testing.build_engine(spec(materialize_only_last_token_logits=False))
        records = decode(engine, requests, [3], return_log_probs=True)
        names = ("generated_tokens", "prompt_log_probs", "generated_log_probs")
        return [[getattr(part, n) for n in names] for record in records for part in record.requests]

    without = answers()
    megatron_patch.install()
    assert answers() == without
