"""Log probs of requests that a suspension makes begin again, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_patch import testing
from megatron_patch.backports.ours.recomputed_prompt_logprobs import RECOMPUTED_PROMPT_LOGPROBS
from megatron_patch.testing.releases import engine_class, inference_config_class, parameters_of

from . import log_probs
from .checks import assert_state_of_record, needs, proof
from .chunks import spec

pytestmark = pytest.mark.usefixtures("device")

# The long prompt has three chunks: steps 2, 3 and 4, if no suspension is in between.
REQUESTS = (
    testing.Request((5, 6, 7), 9),
    testing.Request(tuple(i * i % 127 for i in range(150)), 6, arrival_step=2),
    testing.Request((8, 9), 4, arrival_step=3),
)
STEPS = [(3,), (2, 4, 7), (2, 3, 4, 5, 6)]


@pytest.fixture
def modes(device: Any) -> None:
    engine_class()
    config = inference_config_class()
    known = config is not None and "kv_cache_management_mode" in parameters_of(config)
    needs(known, "a way to drop the KV cache in suspension")


def decode(mode: str, steps: tuple[int, ...], **sampling: Any) -> list[Any]:
    """The records of the requests, while the engine is suspended and resumed before some steps."""

    def on_step(engine: Any, step: int) -> None:
        if step in steps:
            testing.suspend(engine)
            testing.resume(engine)

    decoded = testing.decode(
        testing.build_engine(spec(kv_cache_management_mode=mode)),
        REQUESTS,
        on_step=on_step,
        capture_logits=False,
        sampling={"return_log_probs": True, **sampling},
    )
    return list(decoded.records)


def joined(record: Any, name: str) -> list[Any]:
    return [value for part in record.requests for value in getattr(part, name)]


def test_state(device):
    engine_class()
    assert_state_of_record(RECOMPUTED_PROMPT_LOGPROBS)


@proof
@pytest.mark.parametrize("steps", STEPS, ids=str)
def test_each_token_has_one_log_prob(modes, steps):
    """The log prob where a chunk begins is the concern of `prompt-chunk-logprobs`."""
    model, records = testing.build_model(spec()), decode("recompute", steps, top_n_logprobs=2)
    for request, record in zip(REQUESTS, records, strict=True):
        tokens = joined(record, "generated_tokens")
        assert len(tokens) == request.num_tokens
        of_prompt, of_generated = log_probs.of(model, request.prompt, tokens)
        assert joined(record, "generated_log_probs") == pytest.approx(of_generated, abs=1e-4)
        found = record.requests[0].prompt_log_probs
        differences = [abs(one - other) for one, other in zip(found, of_prompt, strict=True)]
        assert sum(off > 1e-4 for off in differences) <= 3
        # Sampling is greedy, and the tokenizer's text of a token is its number.
        likely = [max(top, key=top.get) for top in joined(record, "generated_top_n_logprobs")]
        assert likely == [str(token) for token in tokens]
        assert len(record.requests[0].prompt_top_n_logprobs) == len(of_prompt)


@pytest.mark.parametrize(
    ("mode", "skip"), [("recompute", True), ("persist", False), ("offload", False)]
)
def test_so_it_has_without_those_of_the_prompt_and_where_the_kv_cache_is_kept(modes, mode, skip):
    model = testing.build_model(spec())
    records = decode(mode, STEPS[-1], skip_prompt_log_probs=skip)
    for request, record in zip(REQUESTS, records, strict=True):
        tokens = joined(record, "generated_tokens")
        of_prompt, of_generated = log_probs.of(model, request.prompt, tokens)
        assert joined(record, "generated_log_probs") == pytest.approx(of_generated, abs=1e-4)
        assert len(record.requests[0].prompt_log_probs) == (0 if skip else len(of_prompt))


def test_unpatched_there_are_more_log_probs_than_tokens(modes, unpatched):
    _, record, _ = decode("recompute", (3,))
    assert len(joined(record, "generated_log_probs")) > len(joined(record, "generated_tokens")) == 6
