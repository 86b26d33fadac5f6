"""Tokens that a hybrid model takes from the prefix cache, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.ours.mamba_skipped_tokens import MAMBA_SKIPPED_TOKENS
from megatron_patch.testing.releases import context_parameters

from . import hybrids
from .checks import assert_state_of_record, needs, proof

pytestmark = pytest.mark.usefixtures("device")

#: 4 blocks, the last of which leaves a Mamba state.
PROMPT = tuple(range(64))
#: Takes 32 tokens of a step from the next prompt.
OTHER = tuple(range(100, 68, -1))


def later(*prompts: tuple[int, ...]) -> list[testing.Request]:
    """``PROMPT``, and while that goes on, these in one step."""
    others = [testing.Request(prompt, 4, arrival_step=6) for prompt in prompts]
    return [testing.Request(PROMPT, 30), *others]


#: By the longest step that there is.
WHOLE = {
    "a token more than what is cached": later((*PROMPT, 5)),
    "more tokens": later((*PROMPT, 5, 6, 7)),
    "the same": later(PROMPT),
    "a part of it": later(PROMPT[:33], PROMPT[:32]),
}

#: With steps of 64 tokens: what is left of one step for a prompt is a number of whole blocks.
CHUNKS = {
    "the second chunk is cached, too": later(OTHER[:-1], (*PROMPT, *range(70, 90))),
    "and one more": later(OTHER[:-1], PROMPT),
    "and the first has a state": [
        testing.Request(PROMPT[:32], 30),
        *later(OTHER[:-2], (*PROMPT, *range(70, 90))),
    ],
}


def test_state():
    testing.context_class()
    assert_state_of_record(MAMBA_SKIPPED_TOKENS)


@proof
@pytest.mark.parametrize("requests", WHOLE)
def test_the_state_has_all_tokens_of_a_whole_prompt(requests):
    spec = hybrids.caching(8, max_tokens=128)
    hybrids.decode(testing.build_engine(spec), spec, WHOLE[requests])


@proof
@pytest.mark.parametrize("requests", CHUNKS)
def test_the_state_has_all_tokens_of_a_prompt_in_chunks(requests):
    spec = hybrids.caching(8, enable_chunked_prefill=True)
    hybrids.decode(testing.build_engine(spec), spec, CHUNKS[requests])


@proof
@pytest.mark.parametrize("requests", CHUNKS)
def test_without_a_cache_of_states(requests):
    needs("enable_prefix_caching" in context_parameters(), "prefix caching")
    spec = testing.EngineSpec(
        enable_prefix_caching=True,
        enable_chunked_prefill=True,
        buffer_size_gb=0.02,
        options=hybrids.options(2),
    )
    hybrids.decode(testing.build_engine(spec), spec, CHUNKS[requests])


def test_a_cached_state_is_still_used(unpatched):
    def run() -> int:
        spec = hybrids.caching(8, max_tokens=128)
        engine = testing.build_engine(spec)
        hybrids.decode(engine, spec, WHOLE["more tokens"])
        return int(engine.context.lifetime_prefill_token_count)

    without = run()
    assert without == len(PROMPT) + 3
    megatron_patch.install()
    assert run() == without


def test_other_models_skip_as_before(unpatched, monkeypatch):
    def run() -> Any:
        spec = testing.EngineSpec(enable_prefix_caching=True, enable_chunked_prefill=True)
        try:
            engine = testing.build_engine(spec)
        except testing.UnsupportedError as error:
            pytest.skip(str(error))
        found = []
        for requests in CHUNKS.values():
            decoded = testing.decode(engine, requests, capture_logits=False)
            found.append((decoded.tokens, engine.context.lifetime_prefill_token_count))
        return found

    # 0.17 needs other patches to take all of a prompt from the cache.
    monkeypatch.setenv("MEGATRON_PATCH", f"-{MAMBA_SKIPPED_TOKENS.id}")
    megatron_patch.install()
    without = run()
    megatron_patch.uninstall()
    monkeypatch.delenv("MEGATRON_PATCH")
    megatron_patch.install()
    assert run() == without
