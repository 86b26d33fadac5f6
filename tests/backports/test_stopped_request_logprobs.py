"""What a request leaves behind in the step that ends it after a stop word.

From 0.18 on these tests run upstream's own code: it has to do the same.
"""

from __future__ import annotations

import pytest
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.stopped_request_logprobs import STOPPED_REQUEST_LOGPROBS

from ..conftest import RELEASE, expected_state
from . import stop_words
from .checks import needs, proof, state_of

STOPS = RELEASE >= Version("0.16")
PATCHED = STOPS and RELEASE < Version("0.18")

PROMPT = (5, 6, 7, 8)
NUM_TOKENS = 6

pytestmark = pytest.mark.usefixtures("device")
only_stopping = pytest.mark.skipif(not STOPS, reason=f"{RELEASE} has no stop words")
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} has none, or does it right")


def spec(only_last: bool) -> testing.EngineSpec:
    return testing.EngineSpec(materialize_only_last_token_logits=only_last)


@pytest.fixture(scope="module")
def model(device):  # type: ignore[no-untyped-def]
    return testing.build_model(spec(False))


@pytest.fixture(scope="module")
def tokens(model):  # type: ignore[no-untyped-def]
    (found,) = testing.reference_decode(model, [testing.Request(PROMPT, NUM_TOKENS)])
    return found


def decode(tokens, only_last: bool, **sampling):  # type: ignore[no-untyped-def]
    """Requests that end after each of the tokens, one without a stop word, and their answers."""
    keeps = {"detokenize_stop_sequence": True}  # 0.16 always does
    keeps = keeps if stop_words.supported("detokenize_stop_sequence") else {}
    sampling = {"return_log_probs": True, **keeps, **sampling}
    words = [*((token,) for token in tokens), ()]
    requests = [stop_words.request(PROMPT, word, NUM_TOKENS) for word in words]
    engine = testing.build_engine(spec(only_last))
    decoded = testing.decode(engine, requests, capture_logits=False, sampling=sampling)
    assert engine.context.total_request_count == 0
    parts = [record[-1] for record in decoded.records]
    for word, part in zip(words, parts, strict=True):
        assert part.generated_tokens == stop_words.answer(tokens, word, kept=True)
    return requests, parts


def test_state():
    testing.build_engine(testing.EngineSpec())
    expected = State.UPSTREAMED if STOPS else State.NOT_APPLICABLE
    assert state_of(STOPPED_REQUEST_LOGPROBS) is expected_state(
        State.APPLIED if PATCHED else expected
    )


@proof
@pytest.mark.parametrize("only_last", [False, True])
def test_each_generated_token_has_one_log_prob(model, tokens, only_last):
    needs(stop_words.supported(), "stop words")
    requests, parts = decode(tokens, only_last, skip_prompt_log_probs=True)
    for request, part in zip(requests, parts, strict=True):
        stop_words.assert_log_probs(model, request, part)


@only_stopping
@pytest.mark.parametrize("skip", [False, True])
def test_so_they_have_with_their_most_likely_ones(model, tokens, skip):
    requests, parts = decode(tokens, False, skip_prompt_log_probs=skip, top_n_logprobs=2)
    for request, part in zip(requests, parts, strict=True):
        stop_words.assert_log_probs(model, request, part, top_n=2)
        of_prompt = 0 if skip else len(PROMPT) - 1
        assert len(part.prompt_log_probs) == len(part.prompt_top_n_logprobs) == of_prompt


@only_patched
def test_unpatched_there_is_one_more(unpatched, tokens):
    _, parts = decode(tokens, False, top_n_logprobs=2)
    for part in parts:
        more = len(part.generated_tokens) < NUM_TOKENS
        assert len(part.generated_log_probs) == len(part.generated_tokens) + more
        assert len(part.generated_top_n_logprobs) == len(part.generated_tokens) + more


@only_patched
def test_nothing_changes_without_stop_words(unpatched, tokens):
    def values():  # type: ignore[no-untyped-def]
        engine = testing.build_engine(spec(False))
        requests = [testing.Request(PROMPT, NUM_TOKENS), testing.Request((9, 10), 3, 2)]
        sampling = {"return_log_probs": True, "top_n_logprobs": 2}
        records = testing.decode(engine, requests, sampling=sampling).records
        names = ("generated_tokens", "prompt_log_probs", "generated_log_probs")
        names += ("prompt_top_n_logprobs", "generated_top_n_logprobs")
        return [[getattr(record[-1], name) for name in names] for record in records]

    without = values()
    megatron_patch.install()
    assert values() == without
