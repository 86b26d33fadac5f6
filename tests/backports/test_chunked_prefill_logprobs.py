"""Log probs of what is generated after a prompt in chunks.

From 0.17 on these tests run upstream's own code.
"""

from __future__ import annotations

import pytest
from packaging.version import Version

from megatron_patch import State, testing
from megatron_patch.backports.upstream.chunked_prefill_logprobs import CHUNKED_PREFILL_LOGPROBS
from megatron_patch.testing.releases import parameters_of
from tools.benchmarking import selected

from ..conftest import RELEASE, expected_state
from . import log_probs
from .checks import needs, proof, state_of

SKIPS = RELEASE >= Version("0.16")
PATCHED = SKIPS and RELEASE < Version("0.17")

pytestmark = pytest.mark.usefixtures("device")
only_skipping = pytest.mark.skipif(
    not SKIPS, reason=f"{RELEASE} does not return log probs without those of the prompt"
)
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} has upstream's own change")

# Three chunks, of which the last has one token, or many.
LENGTHS = [128, 150]


def spec(only_last: bool = False) -> testing.EngineSpec:
    return testing.EngineSpec(
        materialize_only_last_token_logits=only_last,
        enable_chunked_prefill=True,
        max_sequence_length=256,
    )


def requests(length: int) -> list[testing.Request]:
    """One whose prompt is split, while others are prefilled and decoded."""
    long = tuple(i * i % 127 for i in range(length))
    return [
        testing.Request((5, 6, 7), 9),
        testing.Request(long, 6, arrival_step=2),
        testing.Request((8, 9), 4, arrival_step=3),
    ]


@pytest.fixture(scope="module")
def skipping(device) -> None:  # type: ignore[no-untyped-def]
    testing.context_class()
    from megatron.core.inference.sampling_params import SamplingParams

    skips = "skip_prompt_log_probs" in parameters_of(SamplingParams)
    needs(skips, "log probs without those of the prompt")


@pytest.fixture(scope="module")
def model(skipping):  # type: ignore[no-untyped-def]
    return testing.build_model(spec())


def decode(length, only_last=False, **sampling):  # type: ignore[no-untyped-def]
    """The engine's records, one part each."""
    engine = testing.build_engine(spec(only_last))
    sampling = {"return_log_probs": True, **sampling}
    decoded = testing.decode(engine, requests(length), capture_logits=False, sampling=sampling)
    return [record[-1] for record in decoded.records]


def check(model, parts, length):  # type: ignore[no-untyped-def]
    for request, part in zip(requests(length), parts, strict=True):
        assert len(part.generated_tokens) == request.num_tokens
        _, expected = log_probs.of(model, request.prompt, part.generated_tokens)
        assert part.generated_log_probs == pytest.approx(expected, abs=1e-4)


def test_state():
    testing.build_engine(testing.EngineSpec())
    expected = State.UPSTREAMED if SKIPS else State.NOT_APPLICABLE
    assert state_of(CHUNKED_PREFILL_LOGPROBS) is expected_state(
        State.APPLIED if PATCHED else expected
    )


@only_skipping
@pytest.mark.parametrize("only_last", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_generated_tokens_have_their_own_log_probs(model, length, only_last):
    parts = decode(length, only_last, skip_prompt_log_probs=True)
    check(model, parts, length)
    assert [part.prompt_log_probs for part in parts] == [[], [], []]


@proof
@pytest.mark.parametrize("only_last", [False, True])
def test_each_generated_token_has_one_log_prob(model, only_last):
    check(model, decode(LENGTHS[1], only_last, skip_prompt_log_probs=True), LENGTHS[1])


@only_skipping
@pytest.mark.parametrize("length", LENGTHS)
def test_so_they_have_with_those_of_the_prompt(model, length):
    parts = decode(length)
    check(model, parts, length)
    counts = [len(part.prompt_log_probs) for part in parts]
    assert counts == [len(request.prompt) - 1 for request in requests(length)]


@only_patched
@pytest.mark.parametrize("only_last", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_generated_tokens_have_their_own_most_likely_ones(length, only_last):
    for part in decode(length, only_last, skip_prompt_log_probs=True, top_n_logprobs=2):
        assert part.prompt_top_n_logprobs == []
        # Sampling is greedy, and the tokenizer's text of a token is its number.
        likely = part.generated_top_n_logprobs
        assert [max(top, key=top.get) for top in likely] == [str(t) for t in part.generated_tokens]


@only_patched
@pytest.mark.parametrize("length", LENGTHS)
def test_unpatched_each_chunk_leaves_a_log_prob(unpatched, model, length):
    _, part, _ = decode(length, skip_prompt_log_probs=True, top_n_logprobs=2)
    _, expected = log_probs.of(model, requests(length)[1].prompt, part.generated_tokens)
    assert len(part.generated_tokens) == 6
    assert len(part.generated_log_probs) == len(part.generated_top_n_logprobs) == 6 + 2
    assert part.generated_log_probs[2:] == pytest.approx(expected, abs=1e-4)


@only_patched
@pytest.mark.parametrize("only_last", [False, True])
def test_nothing_else_changes(unpatched, only_last):
    """Neither with the log probs of the prompt, nor with prompts in one chunk."""
    length, skip = (20, True) if only_last else (150, False)
    sampling = {"skip_prompt_log_probs": skip, "top_n_logprobs": 2}
    # Where a chunk begins, `prompt-chunk-logprobs` changes one.
    with selected("-chunked-prefill-logprobs"):
        without = decode(length, only_last, **sampling)
    for one, other in zip(decode(length, only_last, **sampling), without, strict=True):
        assert one.generated_tokens == other.generated_tokens
        assert one.prompt_log_probs == other.prompt_log_probs
        assert one.generated_log_probs == other.generated_log_probs
        assert one.prompt_top_n_logprobs == other.prompt_top_n_logprobs
        assert one.generated_top_n_logprobs == other.generated_top_n_logprobs
