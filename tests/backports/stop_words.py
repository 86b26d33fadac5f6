"""Requests with stop words, and what their answers have to be."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from megatron_patch import testing
from megatron_patch.testing.releases import parameters_of

from . import log_probs

NUM_TOKENS = 9

#: A stop word: the place of its first token in what the model alone generates, and its length.
PLACES = [(first, count) for first in range(NUM_TOKENS) for count in (1, 2, 3)]
PLACES = [(first, count) for first, count in PLACES if first + count <= NUM_TOKENS]


def supported(name: str = "stop_words") -> bool:
    """Whether the release has such a sampling parameter."""
    from megatron.core.inference.sampling_params import SamplingParams

    return name in parameters_of(SamplingParams)


def text(word: Sequence[int]) -> str:
    """``tokens`` as text that the tokenizer of the tests reads."""
    return " ".join(map(str, word))


def prompt_without_repetition(model: Any, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A prompt, and tokens that the model alone generates after it, all of them different."""
    for first in range(5, 100):
        prompt = tuple(range(first, first + 4))
        (tokens,) = testing.reference_decode(model, [testing.Request(prompt, number)])
        if len(set(tokens)) == number:
            return prompt, tokens
    raise AssertionError("the model repeats itself after each prompt")


def request(
    prompt: tuple[int, ...], word: Sequence[int], num_tokens: int = NUM_TOKENS, **fields: Any
) -> testing.Request:
    """A request with one stop word, or with none."""
    sampling = {"stop_words": [text(word)]} if word else {}
    return testing.Request(prompt, num_tokens, sampling=sampling, **fields)


def answer(tokens: Sequence[int], word: Sequence[int], kept: bool) -> list[int]:
    """The tokens of the model alone, up to the stop word."""
    for end in range(len(word), len(tokens) + 1):
        if word and list(tokens[end - len(word) : end]) == list(word):
            return list(tokens[: end if kept else end - len(word)])
    return list(tokens)


def all_places(prompt: tuple[int, ...], tokens: Sequence[int]) -> Iterator[testing.Request]:
    """A request for each stop word that its answer can have, and one without."""
    for first, count in PLACES:
        yield request(prompt, tokens[first : first + count])
    yield request(prompt, ())


def word_of(asked: testing.Request) -> list[int]:
    """The tokens of a request's stop word."""
    return [int(token) for word in asked.sampling.get("stop_words", ()) for token in word.split()]


#: The same answers come again and again, from one engine after the other.
_alone = functools.cache(log_probs.of)


def assert_log_probs(model: Any, asked: testing.Request, part: Any, *, top_n: int = 0) -> None:
    """There are as many log probs as tokens, and each is that of its own token."""
    of_prompt, of_generated = _alone(model, asked.prompt, tuple(part.generated_tokens))
    assert part.generated_log_probs == pytest.approx(of_generated, abs=1e-4)
    if part.prompt_log_probs:
        assert part.prompt_log_probs == pytest.approx(of_prompt, abs=1e-4)
    if top_n:
        # Requests are greedy, and the tokenizer's text of a token is its number.
        likely = [max(top, key=top.get) for top in part.generated_top_n_logprobs]
        assert likely == [str(token) for token in part.generated_tokens]
