"""What Mamba's kernels make of cached states, for which other tests have a count of tokens."""

from __future__ import annotations

import pytest
import torch

from megatron_patch import testing

from . import hybrid_models

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda_device")]

BLOCK = hybrid_models.BLOCK
TOKENS = torch.randint(1, 128, (3 * 2048,), generator=torch.Generator().manual_seed(0)).tolist()

#: 4 blocks, the last of which leaves a state; another prompt, and what follows on the first.
PROMPT, OTHER, MORE = (tuple(TOKENS[n * 2048 : n * 2048 + 4 * BLOCK]) for n in range(3))


def later(*prompts: tuple[int, ...]) -> list[testing.Request]:
    """``PROMPT``, and while that goes on, these in one step."""
    others = [testing.Request(prompt, 4, arrival_step=6) for prompt in prompts]
    return [testing.Request(PROMPT, 30), *others]


WHOLE = {
    "a token more than what is cached": later((*PROMPT, 5)),
    "more tokens": later((*PROMPT, *MORE[:77])),
    "the same": later(PROMPT),
    "a part of it": later(PROMPT[: 2 * BLOCK + 1], PROMPT[: 2 * BLOCK]),
}

#: With steps of 4 blocks.
CHUNKS = {
    "as long": later(OTHER[: 2 * BLOCK], PROMPT),
    "longer": later(OTHER[: 2 * BLOCK], (*PROMPT, *MORE[:300])),
    "with a state that the chunk reaches": [
        testing.Request(PROMPT[: 2 * BLOCK], 30),
        *later(OTHER[: 2 * BLOCK], (*PROMPT, *MORE[:300])),
    ],
    "shorter": [
        testing.Request(PROMPT[: 2 * BLOCK], 30),
        testing.Request(OTHER[: 3 * BLOCK], 6, arrival_step=6),
        testing.Request(PROMPT[: 2 * BLOCK], 4, arrival_step=6),
    ],
}


def compare_with_prompts_read_alone(requests: list[testing.Request], chunks: bool) -> int:
    """Compare the states; returns how many tokens were not computed, because of the cache."""
    spec = hybrid_models.spec_of(
        enable_prefix_caching=True,
        enable_chunked_prefill=chunks,
        max_tokens=4 * BLOCK if chunks else 4096,
    )
    model = hybrid_models.build_model(spec)
    engine = hybrid_models.build_engine(spec, model, prefix_caching_mamba_gb=0.5)
    cached = hybrid_models.states_after_prompts(engine, requests)
    computed = int(engine.context.lifetime_prefill_token_count)
    alone = hybrid_models.build_engine(hybrid_models.spec_of(max_tokens=2048), model)
    for request, states in zip(requests, cached, strict=True):
        (expected,) = hybrid_models.states_after_prompts(
            alone, [testing.Request(request.prompt, 4)]
        )
        for mine, its in zip(states, expected, strict=True):
            assert float((mine - its).norm() / its.norm()) < 0.02
    return sum(len(request.prompt) for request in requests) - computed


@pytest.mark.parametrize("requests", WHOLE)
def test_states_of_whole_prompts(requests):
    saved = compare_with_prompts_read_alone(WHOLE[requests], chunks=False)
    if requests == "more tokens":
        assert saved == len(PROMPT)


@pytest.mark.parametrize("requests", CHUNKS)
def test_states_of_prompts_in_chunks(requests):
    compare_with_prompts_read_alone(CHUNKS[requests], chunks=True)
