"""Choices of HTTP answers: one for each prompt, also for a request that was evicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from megatron_patch import testing
from megatron_patch.backports.upstream.one_choice_per_answer import ONE_CHOICE_PER_ANSWER
from megatron_patch.testing.releases import context_parameters

from .checks import assert_state_of_record, proof
from .endpoints import Server

pytestmark = pytest.mark.usefixtures("device")

PROMPTS = [list(range(7 * n, 7 * n + 20)) for n in range(6)]


#: Tokens of a block of the KV cache, by default.
BLOCK_GB = 16 * 1024 / 1024**3


@pytest.fixture
def scarce(device: Any) -> Server:
    """The endpoints in front of an engine that has to evict some of the requests."""
    set_aside = {"paused_buffer_size_gb": 4.5 * BLOCK_GB}
    known = "paused_buffer_size_gb" in context_parameters()
    return Server(
        testing.EngineSpec(
            materialize_only_last_token_logits=False,
            max_tokens=128,
            buffer_size_gb=13.5 * BLOCK_GB,
            options=set_aside if known else {},
        )
    )


def text(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


def test_state(scarce):
    assert_state_of_record(ONE_CHOICE_PER_ANSWER)


@proof
def test_a_request_that_was_evicted_has_one_choice(scarce):
    model = testing.build_model(testing.EngineSpec())
    requests = [testing.Request(tuple(prompt), 24) for prompt in PROMPTS]
    expected = testing.reference_decode(model, requests)
    answer = scarce.post(
        "/v1/completions",
        prompt=PROMPTS, max_tokens=24, temperature=0, echo=True, logprobs=0,
    )  # fmt: skip
    assert answer.status == 200
    assert scarce.engine.evicted_request_count
    assert [choice["index"] for choice in answer.body["choices"]] == list(range(6))
    for prompt, tokens, choice in zip(PROMPTS, expected, answer.body["choices"], strict=True):
        assert choice["text"] == text(prompt) + text(tokens)
        assert choice["logprobs"]["tokens"] == text([*prompt, *tokens]).split()


@proof
def test_a_chat_that_was_evicted_has_one_choice(scarce):
    content = text(range(18))
    answer = scarce.post(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": content}], max_tokens=24, temperature=0, n=6,
    )  # fmt: skip
    assert answer.status == 200
    assert scarce.engine.evicted_request_count
    assert [choice["index"] for choice in answer.body["choices"]] == list(range(6))
    texts = {choice["message"]["content"] for choice in answer.body["choices"]}
    assert [len(found.split()) for found in texts] == [24]
    assert answer.body["usage"]["completion_tokens"] == 6 * 24


def test_the_reason_why_it_ended(device):
    server = Server()
    fields = {"messages": [{"role": "user", "content": "1 2 3"}], "temperature": 0}
    whole = server.post("/v1/chat/completions", max_tokens=4, **fields)
    (choice,) = whole.body["choices"]
    assert choice["finish_reason"] == "length"
    # The engine ends a request at the token that its tokenizer calls the end.
    server.tokenizer.eod = int(choice["message"]["content"].split()[1])
    (choice,) = server.post("/v1/chat/completions", max_tokens=4, **fields).body["choices"]
    assert choice["finish_reason"] == "stop"
