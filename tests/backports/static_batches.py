"""Requests that the static engine decodes as one batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from megatron_patch import testing
from megatron_patch.testing.engines import NumberTokenizer
from megatron_patch.testing.releases import parameters_of
from megatron_patch.testing.runtime import running

#: The prompt of each request.
PROMPTS = ("5 6 7 8", "9 10 11 12 15", "20 3")
NUM_TOKENS = 10


class OffsetTokenizer(NumberTokenizer):
    """A tokenizer of numbers that can say where in the text each token starts."""

    def offsets(self, tokens: Sequence[int], text: str) -> list[int]:
        starts = [0]
        for token in tokens:
            starts.append(starts[-1] + len(f"{token} "))
        return starts[:-1]


def segments_of(tokens: Sequence[int]) -> list[str]:
    """The segments that a request with these tokens has to have."""
    return [f"{token} " for token in tokens[:-1]] + [str(token) for token in tokens[-1:]]


def sampling(**fields: Any) -> Any:
    """``SamplingParams`` for ``NUM_TOKENS`` tokens, greedy. ``fields`` may be no fields of it."""
    from megatron.core.inference.sampling_params import SamplingParams

    parameters = SamplingParams(num_tokens_to_generate=NUM_TOKENS, top_k=1)
    parameters.add_attributes(fields)
    return parameters


def build(end: int, spec: testing.EngineSpec | None = None) -> Any:
    """A ``StaticInferenceEngine`` that decodes itself. ``end`` is the token that ends a request."""
    from megatron.core.inference.contexts import StaticInferenceContext
    from megatron.core.inference.engines.static_engine import StaticInferenceEngine
    from megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper import (
        GPTInferenceWrapper,
    )

    spec = spec or testing.EngineSpec()
    given = testing.build_engine(spec).controller
    wrapped = given.inference_wrapped_model
    config = getattr(wrapped, "inference_wrapper_config", None)
    context = StaticInferenceContext(spec.max_requests, spec.max_sequence_length)
    # Releases differ in whether the wrapper takes a configuration of its own.
    has_config = "inference_wrapper_config" in parameters_of(GPTInferenceWrapper)
    between = (config,) if has_config else ()
    tokenizer = OffsetTokenizer(spec.vocab_size)
    tokenizer.eod = end
    controller = type(given)(GPTInferenceWrapper(wrapped.model, *between, context), tokenizer)
    by_itself = {"legacy": True} if "legacy" in parameters_of(StaticInferenceEngine) else {}
    with warnings.catch_warnings():
        # The engine warns that it will be removed.
        warnings.simplefilter("ignore")
        return StaticInferenceEngine(controller, random_seed=spec.seed, **by_itself)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    from megatron.core.inference.engines import static_engine

    with mock.patch.multiple(static_engine, HAVE_TQDM=True, tqdm=mock.MagicMock()):
        yield


def generate(engine: Any, **fields: Any) -> list[Any]:
    """The finished request of each of ``PROMPTS``; ``fields`` are those of ``SamplingParams``."""
    with _without_progress_bar():
        return list(engine.generate(prompts=list(PROMPTS), sampling_params=sampling(**fields)))


def stream(engine: Any, **fields: Any) -> list[list[Any]]:
    """The parts that the stream of each of ``PROMPTS`` gives; ``fields`` as of ``generate()``."""

    async def serve() -> list[list[Any]]:
        parameters = sampling(**fields)
        ids = [
            engine.add_request(prompt=prompt, streaming=True, sampling_params=parameters)
            for prompt in PROMPTS
        ]
        with _without_progress_bar():
            engine.run_engine()
        parts: list[list[Any]] = []
        for found in ids:
            parts.append([part async for part in engine.get_stream_generator(found)])
        return parts

    return list(running().loop.run_until_complete(serve()))
