"""Log probs of stop words that are taken out of the answer."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.ours.stop_word_logprobs import STOP_WORD_LOGPROBS

from ..conftest import RELEASE, expected_state
from . import log_probs, stop_words
from .checks import needs, proof, state_of

TRIMS = RELEASE >= Version("0.17")
ASYNC = RELEASE >= Version("0.19")

PROMPT = (9, 10, 11)

pytestmark = pytest.mark.usefixtures("device")
only_trimming = pytest.mark.skipif(not TRIMS, reason=f"{RELEASE} takes no stop word out")
only_async = pytest.mark.skipif(not ASYNC, reason=f"{RELEASE} has no asynchronous scheduling")


def spec(only_last: bool = False, speculative: int = 0, **options: Any) -> testing.EngineSpec:
    return testing.EngineSpec(
        materialize_only_last_token_logits=only_last,
        num_speculative_tokens=speculative,
        options=options,
    )


@pytest.fixture(scope="module")
def models(device):  # type: ignore[no-untyped-def]
    """Models without and with speculative tokens, built once."""
    known: dict[int, Any] = {}

    def model(speculative: int = 0):  # type: ignore[no-untyped-def]
        if speculative not in known:
            known[speculative] = testing.build_model(spec(speculative=speculative))
        return known[speculative]

    return model


@functools.cache
def tokens_of(model, prompt=PROMPT, number: int = stop_words.NUM_TOKENS):  # type: ignore[no-untyped-def]
    (tokens,) = testing.reference_decode(model, [testing.Request(prompt, number)])
    return tokens


def decode(engine, requests, **sampling):  # type: ignore[no-untyped-def]
    """The engine's records, one part each."""
    sampling = {"return_log_probs": True, **sampling}
    decoded = testing.decode(engine, requests, capture_logits=False, sampling=sampling)
    assert engine.context.total_request_count == 0
    return [record[-1] for record in decoded.records]


def check(model, engine_spec, *, skip: bool, kept: bool, top_n: int) -> None:  # type: ignore[no-untyped-def]
    """Check stop words at all places of the answer, beside a request that goes on."""
    tokens = tokens_of(model)
    requests = [*stop_words.all_places(PROMPT, tokens)]
    parts = decode(
        testing.build_engine(engine_spec),
        requests,
        skip_prompt_log_probs=skip,
        detokenize_stop_sequence=kept,
        top_n_logprobs=top_n,
    )
    for request, part in zip(requests, parts, strict=True):
        word = stop_words.word_of(request)
        assert part.generated_tokens == stop_words.answer(tokens, word, kept)
        stop_words.assert_log_probs(model, request, part, top_n=top_n)
        assert len(part.prompt_log_probs) == (0 if skip else len(PROMPT) - 1)
        if top_n:
            assert len(part.prompt_top_n_logprobs) == len(part.prompt_log_probs)


def test_state():
    testing.build_engine(testing.EngineSpec())
    assert state_of(STOP_WORD_LOGPROBS) is expected_state(
        State.APPLIED if TRIMS else State.NOT_APPLICABLE
    )


@proof
@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 2), (2, 2), (2, 3)])
def test_no_log_prob_is_left_of_a_stop_word(models, first, count):
    """It ends with the last token that is wanted: no other step, of other patches, ends it."""
    needs(stop_words.supported("detokenize_stop_sequence"), "stop words that are taken out")
    model = models()
    prompt, tokens = stop_words.prompt_without_repetition(model, 5)
    word = tokens[first : first + count]
    request = stop_words.request(prompt, word, first + count)
    other = stop_words.request((12, 13), (), 7)
    engine = testing.build_engine(spec(True))
    part, rest = decode(engine, [request, other], skip_prompt_log_probs=True)
    assert part.generated_tokens == list(tokens[:first])
    stop_words.assert_log_probs(model, request, part)
    stop_words.assert_log_probs(model, other, rest)


@only_trimming
@pytest.mark.parametrize("top_n", [0, 2])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("skip", "only_last"), [(False, False), (True, False), (True, True)], ids=str
)
def test_each_token_has_its_own(models, skip, only_last, kept, top_n):
    check(models(), spec(only_last), skip=skip, kept=kept, top_n=top_n)


@only_trimming
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_so_it_has_with_speculative_tokens(models, skip, kept):
    check(models(2), spec(speculative=2), skip=skip, kept=kept, top_n=2)


@only_async
@pytest.mark.parametrize("skip", [False, True])
def test_so_it_has_with_asynchronous_scheduling(models, skip):
    check(models(), spec(async_sched_mode="async"), skip=skip, kept=False, top_n=2)


@only_trimming
@pytest.mark.parametrize("skip", [False, True])
def test_so_it_has_in_steps_of_cuda_graphs(models, skip):
    graphs = testing.EngineSpec(
        materialize_only_last_token_logits=False, num_cuda_graphs=4, max_requests=16
    )
    check(models(), graphs, skip=skip, kept=False, top_n=2)


@only_trimming
@pytest.mark.parametrize("skip", [False, True])
def test_so_it_has_after_a_prompt_in_chunks(models, skip):
    """A token that a chunk samples never counts towards a stop word."""
    model = models()
    prompt = tuple(i * i % 127 for i in range(100))
    tokens = tokens_of(model, prompt, 4)
    (chunk,) = tokens_of(model, prompt[:64], 1)
    chunks = testing.EngineSpec(
        materialize_only_last_token_logits=False, enable_chunked_prefill=True
    )
    words = [(), (chunk,), *(tokens[a:b] for a, b in [(0, 1), (0, 2), (1, 3)])]
    for word in words:
        request = stop_words.request(prompt, word, 4)
        engine = testing.build_engine(chunks)
        (part,) = decode(engine, [request], skip_prompt_log_probs=skip)
        assert part.generated_tokens == stop_words.answer(tokens, word, kept=False)
        _, expected = log_probs.of(model, prompt, part.generated_tokens)
        assert part.generated_log_probs == pytest.approx(expected, abs=1e-4)


@only_trimming
def test_the_earliest_of_several_ends_the_request(models):
    model = models()
    prompt, tokens = stop_words.prompt_without_repetition(model, 9)
    words = [stop_words.text(tokens[a:b]) for a, b in [(6, 7), (3, 6), (4, 7)]]
    request = testing.Request(prompt, 9, sampling={"stop_words": words})
    (part,) = decode(testing.build_engine(spec()), [request])
    assert part.generated_tokens == list(tokens[:3])
    stop_words.assert_log_probs(model, request, part)


@only_trimming
@pytest.mark.parametrize("only_last", [False, True])
def test_a_request_for_no_token_has_no_log_prob(models, only_last):
    requests = [stop_words.request(PROMPT, (), 0), stop_words.request(PROMPT, (), 3)]
    engine = testing.build_engine(spec(only_last))
    none, other = decode(engine, requests, skip_prompt_log_probs=True, top_n_logprobs=2)
    assert none.generated_tokens == none.generated_log_probs == none.generated_top_n_logprobs == []
    stop_words.assert_log_probs(models(), requests[1], other, top_n=2)


@only_trimming
def test_unpatched_a_first_token_that_is_a_stop_word_ends_the_engine(unpatched, models):
    request = stop_words.request(PROMPT, tokens_of(models())[:1])
    with pytest.raises(IndexError, match="list index out of range"):
        decode(testing.build_engine(spec(True)), [request], skip_prompt_log_probs=True)


@only_trimming
def test_unpatched_those_of_earlier_steps_stay(unpatched, models):
    """The word's last token ends the request, so that no other step has a part in it."""
    prompt, tokens = stop_words.prompt_without_repetition(models(), 7)
    request = stop_words.request(prompt, tokens[4:7], 7)
    (part,) = decode(testing.build_engine(spec()), [request], top_n_logprobs=2)
    assert len(part.generated_tokens) == 4
    assert len(part.generated_log_probs) == len(part.generated_top_n_logprobs) == 6


@only_trimming
def test_nothing_changes_without_stop_words(unpatched):
    def values():  # type: ignore[no-untyped-def]
        engine = testing.build_engine(spec())
        requests = [testing.Request(PROMPT, 6), testing.Request((9, 10), 3, 2)]
        parts = decode(engine, requests, top_n_logprobs=2)
        names = ("generated_tokens", "prompt_log_probs", "generated_log_probs")
        names += ("prompt_top_n_logprobs", "generated_top_n_logprobs")
        return [[getattr(part, name) for name in names] for part in parts]

    without = values()
    megatron_patch.install()
    assert values() == without
