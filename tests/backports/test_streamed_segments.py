"""What the static engine streams, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

import megatron_patch
from megatron_patch.backports.ours.streamed_segments import STREAMED_SEGMENTS

from . import static_batches
from .checks import assert_state_of_record, proof
from .static_batches import NUM_TOKENS, segments_of

pytestmark = pytest.mark.usefixtures("device")

#: A termination id that is no token.
NEVER = -1


def parts(**fields: Any) -> list[list[tuple[list[int], str, Any]]]:
    """Tokens, text and segments of each part that each stream gives."""
    return [
        [
            (part.generated_tokens.tolist(), part.generated_text, part.generated_segments)
            for part in stream
        ]
        for stream in static_batches.stream(static_batches.build(NEVER), **fields)
    ]


def test_state():
    static_batches.build(NEVER)
    assert_state_of_record(STREAMED_SEGMENTS)


@proof
# Log probs are streamed for all tokens, or for none.
@pytest.mark.parametrize("log_probs", [False, True])
def test_each_token_is_streamed_with_the_segments_so_far(log_probs):
    streams = parts(return_segments=True, return_log_probs=log_probs)
    for stream in streams:
        assert [len(tokens) for tokens, _, _ in stream] == list(range(1, NUM_TOKENS + 1))
        for tokens, text, segments in stream:
            assert segments == segments_of(tokens)
            assert "".join(segments) == text
    without = parts()
    assert [[part[:2] for part in stream] for stream in streams] == [
        [part[:2] for part in stream] for stream in without
    ]


def test_without_segments_nothing_is_other(unpatched):
    without = parts()
    assert {segments for stream in without for _, _, segments in stream} == {None}
    megatron_patch.install()
    assert parts() == without


def test_without_text_there_are_no_segments():
    streams = parts(return_segments=True, no_detokenize_streaming_text=True)
    assert {text for stream in streams for _, text, _ in stream} == {""}
    assert all(segments == [] for stream in streams for _, _, segments in stream)
