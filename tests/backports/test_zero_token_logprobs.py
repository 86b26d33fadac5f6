"""Requests for no tokens, which are there for the log probs of their prompt.

From 0.19 on these tests run upstream's own code.
"""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.zero_token_logprobs import ZERO_TOKEN_LOGPROBS
from megatron_patch.testing.releases import context_parameters

from ..conftest import RELEASE, expected_state
from . import log_probs
from .checks import needs, proof, state_of

ENDS_EARLY = RELEASE >= Version("0.17")
PATCHED = ENDS_EARLY and RELEASE < Version("0.19")

pytestmark = pytest.mark.usefixtures("device")
ending_early = pytest.mark.skipif(
    not ENDS_EARLY, reason=f"{RELEASE} generates one token where none is asked for"
)
only_patched = pytest.mark.skipif(
    not PATCHED, reason=f"{RELEASE} does not cut off tokens, or does it right"
)

SPEC = testing.EngineSpec(materialize_only_last_token_logits=False)
SCORED = (testing.Request((5, 6, 7, 8), 0), testing.Request(tuple(range(3, 40)), 0))
REQUESTS = (
    testing.Request((9, 10, 11), 8),
    *SCORED,
    testing.Request((12, 13), 0, arrival_step=3),
    testing.Request((14, 15), 5, arrival_step=3),
)


@pytest.fixture(scope="module")
def model(device):  # type: ignore[no-untyped-def]
    return testing.build_model(SPEC)


def decode(requests, spec=SPEC, **sampling):  # type: ignore[no-untyped-def]
    """The engine's records, one part each."""
    sampling = {"return_log_probs": True, **sampling}
    engine = testing.build_engine(spec)
    decoded = testing.decode(engine, requests, capture_logits=False, sampling=sampling)
    assert engine.context.total_request_count == 0
    # Older engines have no records, which is what a request comes back in.
    return [getattr(record, "requests", [record])[-1] for record in decoded.records]


def test_state():
    testing.build_engine(SPEC)
    expected = State.UPSTREAMED if ENDS_EARLY else State.NOT_APPLICABLE
    assert state_of(ZERO_TOKEN_LOGPROBS) is expected_state(State.APPLIED if PATCHED else expected)


@ending_early
@pytest.mark.parametrize("options", [{}, {"track_generated_token_events": True}], ids=str)
def test_scored_prompts_get_their_log_probs_and_others_all_theirs(model, options):
    spec = testing.EngineSpec(materialize_only_last_token_logits=False, options=options)
    expected = testing.reference_decode(model, REQUESTS)
    for request, tokens, part in zip(REQUESTS, expected, decode(REQUESTS, spec), strict=True):
        assert part.generated_tokens == list(tokens)
        assert len(tokens) == part.generated_length == request.num_tokens
        of_prompt, of_generated = log_probs.of(model, request.prompt, tokens)
        assert part.prompt_log_probs == pytest.approx(of_prompt, abs=1e-4)
        assert part.generated_log_probs == pytest.approx(of_generated, abs=1e-4)
        assert part.status.name == "COMPLETED"
        assert (part.ttft is None) == (not tokens)
        assert len(part.tpot) <= len(tokens)


@proof
def test_scored_prompts_end_and_the_others_go_on(model):
    """Older source generates one token for them."""
    expected = testing.reference_decode(model, REQUESTS)
    for request, tokens, part in zip(REQUESTS, expected, decode(REQUESTS), strict=True):
        if request.num_tokens:
            assert tuple(part.generated_tokens) == tokens
        elif not part.generated_tokens:
            of_prompt, _ = log_probs.of(model, request.prompt, ())
            assert part.prompt_log_probs == pytest.approx(of_prompt, abs=1e-4)
            assert part.generated_log_probs == []
        else:
            assert len(part.generated_tokens) == 1


@ending_early
def test_scored_prompts_end_in_one_step():
    decoded = testing.decode(
        testing.build_engine(SPEC), SCORED, sampling={"return_log_probs": True}
    )
    assert decoded.steps == 1


@ending_early
def test_requests_for_no_tokens_and_no_log_probs_end(model):
    parts = decode(REQUESTS, testing.EngineSpec(), return_log_probs=False)
    assert [tuple(p.generated_tokens) for p in parts] == [
        *testing.reference_decode(model, REQUESTS)
    ]
    assert [p.prompt_log_probs for p in parts] == [None] * len(parts)


@ending_early
def test_the_most_likely_tokens_are_those_of_the_prompt():
    for request, part in zip(SCORED, decode(SCORED, top_n_logprobs=3), strict=True):
        assert part.generated_top_n_logprobs == []
        assert len(part.prompt_top_n_logprobs) == len(request.prompt) - 1
        for own, likely in zip(part.prompt_log_probs, part.prompt_top_n_logprobs, strict=True):
            assert len(likely) == 3
            assert own <= max(likely.values()) + 1e-4


@only_patched
@pytest.mark.parametrize("only_last", [False, True])
def test_without_those_of_the_prompt_there_are_no_log_probs(only_last):
    spec = testing.EngineSpec(materialize_only_last_token_logits=only_last)
    parts = decode(REQUESTS, spec, skip_prompt_log_probs=True, top_n_logprobs=2)
    for request, part in zip(REQUESTS, parts, strict=True):
        assert part.prompt_log_probs == part.prompt_top_n_logprobs == []
        assert len(part.generated_log_probs) == request.num_tokens
        assert len(part.generated_top_n_logprobs) == request.num_tokens


@ending_early
def test_a_prompt_in_chunks_is_scored(model):
    spec = testing.EngineSpec(materialize_only_last_token_logits=False, enable_chunked_prefill=True)
    request = testing.Request(tuple(i * i % 127 for i in range(127)), 0)
    (part,) = decode([request], spec)
    expected, _ = log_probs.of(model, request.prompt, ())
    assert part.prompt_log_probs == pytest.approx(expected, abs=1e-4)
    assert (part.generated_tokens, part.generated_log_probs) == ([], [])


@ending_early
def test_a_scored_prompt_is_cached(model):
    """What comes after it finds its blocks."""
    spec = testing.EngineSpec(materialize_only_last_token_logits=False, enable_prefix_caching=True)
    prompt = tuple(i * i % 127 for i in range(40))
    other = testing.Request((9, 10, 11), 6)
    requests = [testing.Request(prompt, 0), other, testing.Request((*prompt, 7), 4, arrival_step=2)]
    scored, *rest = decode(requests, spec)
    assert scored.prompt_log_probs == pytest.approx(log_probs.of(model, prompt, ())[0], abs=1e-4)
    expected = testing.reference_decode(model, requests)
    assert [tuple(part.generated_tokens) for part in rest] == list(expected[1:])


@only_patched
@pytest.mark.parametrize("return_log_probs", [False, True])
def test_unpatched_a_request_for_no_tokens_ends_the_engine(unpatched, return_log_probs):
    with pytest.raises(IndexError, match="list index out of range"):
        decode(REQUESTS, return_log_probs=return_log_probs)


SPECULATIVE = testing.EngineSpec(materialize_only_last_token_logits=False, num_speculative_tokens=2)


def can_be_built(spec: testing.EngineSpec) -> bool:
    """Some commits of main look for a class of Transformer Engine's, which need not be there."""
    try:
        testing.build_model(spec)
    except TypeError as error:
        if "isinstance()" not in str(error):
            raise
        return False
    return True


def speculated() -> tuple[int, int]:
    """Tokens and log probs of a request for less tokens than the last step accepts."""
    engine = testing.build_engine(SPECULATIVE)
    # All tokens are as likely, so that what is speculated is what is sampled.
    torch.nn.init.zeros_(engine.controller.inference_wrapped_model.model.output_layer.weight)
    request, sampling = testing.Request((5, 6, 7), 3), {"return_log_probs": True}
    (record,) = testing.decode(engine, [request], sampling=sampling).records
    part = record[-1]
    return len(part.generated_tokens), len(part.generated_log_probs)


@proof
def test_there_are_as_many_log_probs_as_tokens_in_speculative_decoding():
    needs("num_speculative_tokens" in context_parameters(), "speculative tokens")
    needs(can_be_built(SPECULATIVE), "speculative tokens without Transformer Engine")
    assert speculated() == (3, 3)


@pytest.mark.skipif(
    RELEASE.release[:2] != (0, 17), reason=f"{RELEASE} speculates on nothing, or cuts off"
)
def test_unpatched_there_are_more_log_probs_than_tokens_in_speculative_decoding(unpatched):
    tokens, found = speculated()
    assert tokens == 3 < found


@only_patched
def test_requests_for_some_tokens_are_unchanged(unpatched):
    requests = [r for r in REQUESTS if r.num_tokens]
    without = decode(requests, top_n_logprobs=2)
    megatron_patch.install()
    for one, other in zip(decode(requests, top_n_logprobs=2), without, strict=True):
        for name in ("generated_tokens", "prompt_log_probs", "generated_log_probs"):
            assert getattr(one, name) == getattr(other, name)
        assert one.prompt_top_n_logprobs == other.prompt_top_n_logprobs
        assert one.generated_top_n_logprobs == other.generated_top_n_logprobs
