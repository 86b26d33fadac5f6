"""The segments of the requests of a static batch, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

import megatron_patch
from megatron_patch.backports.upstream.static_batch_segments import STATIC_BATCH_SEGMENTS

from . import static_batches
from .checks import assert_state_of_record, proof
from .static_batches import NUM_TOKENS, PROMPTS, segments_of

pytestmark = pytest.mark.usefixtures("device")

#: A termination id that is no token.
NEVER = -1


def prompt_tokens(prompt: str) -> list[int]:
    return [int(word) for word in prompt.split()]


@pytest.fixture(scope="module")
def free(device: Any) -> list[list[int]]:
    """The tokens that each request generates if nothing ends it."""
    done = static_batches.generate(static_batches.build(NEVER))
    return [request.generated_tokens.tolist() for request in done]


def an_end(free: list[list[int]]) -> int:
    """A token that ends the first request soonest, so that others generate more."""
    in_prompts = {token for prompt in PROMPTS for token in prompt_tokens(prompt)}

    def lengths(token: int) -> list[int]:
        return [[*tokens, token].index(token) for tokens in free]

    found = [
        token
        for token in free[0]
        if token not in in_prompts and lengths(token)[0] < max(lengths(token)[1:])
    ]
    assert found, free
    return found[0]


def test_state():
    static_batches.build(NEVER)
    assert_state_of_record(STATIC_BATCH_SEGMENTS)


@proof
def test_each_request_has_a_segment_for_each_token(free):
    done = static_batches.generate(static_batches.build(an_end(free)), return_segments=True)
    lengths = [request.generated_length for request in done]
    assert lengths[0] < max(lengths[1:])
    for prompt, request in zip(PROMPTS, done, strict=True):
        tokens = prompt_tokens(prompt) + request.generated_tokens.tolist()
        assert request.segments == segments_of(tokens)
        assert "".join(request.segments) == request.text


def test_requests_of_one_length_are_as_before(free, unpatched):
    """The patch is not about these: no request ends before the others."""

    def segments() -> list[list[str]]:
        done = static_batches.generate(static_batches.build(NEVER), return_segments=True)
        assert {request.generated_length for request in done} == {NUM_TOKENS}
        return [request.segments for request in done]

    without = segments()
    megatron_patch.install()
    assert segments() == without


def test_without_segments_nothing_is_other(free, unpatched):
    def seen() -> list[tuple[Any, ...]]:
        done = static_batches.generate(static_batches.build(an_end(free)))
        return [(found.text, found.segments, found.generated_length) for found in done]

    without = seen()
    assert {segments for _, segments, _ in without} == {None}
    megatron_patch.install()
    assert seen() == without
