"""Cached Mamba states and prompts in chunks, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.upstream.mamba_chunk_match import MAMBA_CHUNK_MATCH

from . import hybrids
from .checks import assert_state_of_record, proof

pytestmark = pytest.mark.usefixtures("device")

#: 6 blocks, the last of which leaves a Mamba state; and the beginning of it, which leaves one too.
PROMPT, BEGINNING = tuple(range(96)), tuple(range(32))

#: Takes tokens of a step from the next prompt.
OTHER = tuple(range(100, 40, -1))


def again(prompt: tuple[int, ...]) -> list[testing.Request]:
    """``prompt``, and while that goes on, in a step with another one, a request with the same."""
    return [
        testing.Request(prompt, 20),
        testing.Request(OTHER, 6, arrival_step=6),
        testing.Request(prompt, 4, arrival_step=6),
    ]


#: With chunks of at most 128 tokens.
REQUESTS = {
    "as long": again(PROMPT),
    "with a state that the chunk reaches": [testing.Request(BEGINNING, 30), *again(PROMPT)],
    "shorter": again(BEGINNING),
}
LONGER = [*again(PROMPT), testing.Request((*PROMPT, 1, 2, 3), 4, arrival_step=6)]


def spec_of(*, chunks: bool) -> testing.EngineSpec:
    return hybrids.caching(8, enable_chunked_prefill=chunks, max_tokens=128)


def test_state():
    testing.context_class()
    assert_state_of_record(MAMBA_CHUNK_MATCH)


@proof
@pytest.mark.parametrize("requests", REQUESTS)
def test_a_cached_prompt_comes_again_in_chunks(requests):
    spec = spec_of(chunks=True)
    engine = testing.build_engine(spec)
    # What the second chunk skips is the concern of `mamba-skipped-tokens`.
    hybrids.decode_tokens(engine, spec, REQUESTS[requests])


def matched(context: Any, request: Any, chunk: int) -> int:
    """How many blocks of a chunk the context takes from the cache."""
    *_, skipped, _ = context._compute_prefix_match(request, chunk)
    return int(skipped) // context.block_size_tokens


@proof
def test_a_chunk_goes_on_from_the_farthest_state_that_it_reaches():
    context = testing.build_engine(spec_of(chunks=True)).context
    request = hybrids.request(context, 0, PROMPT)
    context.add_request(request)
    hashes = request.precomputed_block_hashes
    blocks = context.request_to_kv_block_ids[0].tolist()
    for block in (1, 3, 5):
        context.mamba_slot_allocator.hash_to_block_id[hashes[block]] = blocks[block]
    same = hybrids.request(context, 1, PROMPT)
    # As the engine notes it before it asks, in the releases in which it does.
    same._mamba_num_matched_blocks = 6
    found = {chunk: matched(context, same, chunk) for chunk in (20, 40, 64, 70, 80, 96)}
    assert found == {20: 0, 40: 2, 64: 2, 70: 4, 80: 4, 96: 4}


def test_whole_prompts_are_matched_as_before(unpatched):
    def run() -> tuple[Any, ...]:
        engine = testing.build_engine(spec_of(chunks=False))
        decoded = testing.decode(engine, LONGER, capture_logits=False)
        return decoded.tokens, engine.context.lifetime_prefill_token_count

    without = run()
    megatron_patch.install()
    assert run() == without
