"""The log probs that the HTTP endpoints return, against those of the model alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from megatron_patch import testing
from megatron_patch.backports.ours.http_log_probs import HTTP_LOG_PROBS

from . import log_probs
from .checks import assert_state_of_record, proof
from .endpoints import END, ROLES, Server

pytestmark = pytest.mark.usefixtures("device")

TEXT = "1 2 3 4 5"
MESSAGES = [{"role": "user", "content": TEXT}]
PROMPT = (1, 2, 3, 4, 5)
CHAT = (ROLES["user"], *PROMPT, END, ROLES["assistant"])

#: Engines that keep the last logits alone have no log probs of prompts.
SPECS = {
    "all logits": testing.EngineSpec(materialize_only_last_token_logits=False),
    "only last logits": testing.EngineSpec(materialize_only_last_token_logits=True),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


@pytest.fixture(scope="module")
def model(device: Any) -> Any:
    return testing.build_model(testing.EngineSpec())


@pytest.fixture
def server(device: Any) -> Server:
    return Server()


def numbers(texts: Sequence[str]) -> list[int]:
    return [int(text) for text in texts]


def test_state(server):
    assert_state_of_record(HTTP_LOG_PROBS)


@proof
@each_spec
@pytest.mark.parametrize(("top_logprobs", "n"), [(None, 1), (0, 2), (3, 1)])
def test_a_chat_has_those_of_each_token(model, spec, top_logprobs, n):
    fields = {} if top_logprobs is None else {"top_logprobs": top_logprobs}
    answer = Server(spec).post(
        "/v1/chat/completions",
        messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True, n=n, **fields,
    )  # fmt: skip
    assert answer.status == 200
    assert len(answer.body["choices"]) == n
    for choice in answer.body["choices"]:
        content = choice["logprobs"]["content"]
        tokens = numbers([entry["token"] for entry in content])
        assert choice["message"]["content"] == " ".join(map(str, tokens))
        _, expected = log_probs.of(model, CHAT, tokens)
        assert len(expected) == 4
        assert [entry["logprob"] for entry in content] == pytest.approx(expected, abs=1e-4)
        for entry in content:
            assert bytes(entry["bytes"]).decode() == entry["token"]
            likely = entry["top_logprobs"]
            assert len(likely) == (top_logprobs or 0)
            if likely:  # it is greedy
                assert likely[0]["token"] == entry["token"]
                assert likely[0]["logprob"] == pytest.approx(entry["logprob"])
                values = [other["logprob"] for other in likely]
                assert values == sorted(values, reverse=True)


def test_a_chat_that_asks_for_none_gets_none(server):
    answer = server.post("/v1/chat/completions", messages=MESSAGES, max_tokens=2, temperature=0)
    assert answer.status == 200
    assert answer.body["choices"][0]["logprobs"] is None


@proof
@each_spec
@pytest.mark.parametrize("number", [0, 2])
def test_a_completion_has_those_of_each_token(model, spec, number):
    answer = Server(spec).post(
        "/v1/completions",
        prompt=[TEXT, "9 8 7"], max_tokens=4, temperature=0, logprobs=number,
    )  # fmt: skip
    assert answer.status == 200
    for prompt, choice in zip([PROMPT, (9, 8, 7)], answer.body["choices"], strict=True):
        found = choice["logprobs"]
        tokens = numbers(found["tokens"])
        assert choice["text"] == " ".join(found["tokens"])
        _, expected = log_probs.of(model, prompt, tokens)
        assert found["token_logprobs"] == pytest.approx(expected, abs=1e-4)
        assert len(found["text_offset"]) == len(tokens) == 4
        if not number:
            assert found["top_logprobs"] is None
            continue
        assert len(found["top_logprobs"]) == len(tokens)
        rows = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
        for token, value, likely in rows:
            assert len(likely) == number
            assert likely[token] == max(likely.values()) == pytest.approx(value)


@pytest.mark.parametrize("number", [0, 2])
def test_with_echo_the_first_token_of_the_prompt_has_none(model, server, number):
    answer = server.post(
        "/v1/completions", prompt=TEXT, max_tokens=3, temperature=0, logprobs=number, echo=True
    )
    assert answer.status == 200
    (choice,) = answer.body["choices"]
    found = choice["logprobs"]
    tokens = numbers(found["tokens"])
    assert tuple(tokens[:5]) == PROMPT
    of_prompt, of_generated = log_probs.of(model, PROMPT, tokens[5:])
    assert found["token_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx([*of_prompt, *of_generated], abs=1e-4)
    if number:
        assert found["top_logprobs"][0] is None
        assert len(found["top_logprobs"]) == len(tokens)


def test_a_completion_that_asks_for_none_gets_none(server):
    answer = server.post("/v1/completions", prompt=TEXT, max_tokens=2, temperature=0)
    assert answer.status == 200
    assert answer.body["choices"][0]["logprobs"] is None
