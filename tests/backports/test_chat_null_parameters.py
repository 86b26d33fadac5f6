"""Sampling parameters of a chat that are null."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_patch.backports.upstream.chat_null_parameters import CHAT_NULL_PARAMETERS

from .checks import assert_state_of_record, proof
from .endpoints import Answer, Server

pytestmark = pytest.mark.usefixtures("device")

CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "1 2 3"}],
    "max_tokens": 3,
    "temperature": 0,
}

#: Parameters that have to be given beside each.
NULLS = {
    "temperature": {"top_k": 1, "top_p": 0.0},
    "top_p": {},
    "top_k": {},
    "n": {},
    "logprobs": {},
    "top_logprobs": {"logprobs": True},
    "skip_prompt_log_probs": {},
    "add_BOS": {},
    "ignore_eos": {},
    "max_completion_tokens": {},
    "stop": {},
    "seed": {},
}


@pytest.fixture(scope="module")
def server(device: Any) -> Server:
    return Server()


def ask(server: Server, **fields: Any) -> Answer:
    fields = {**CHAT, **fields}
    given = {name: value for name, value in fields.items() if value is not ...}
    return server.post("/v1/chat/completions", **given)


def test_state(server):
    assert_state_of_record(CHAT_NULL_PARAMETERS)


@proof
@pytest.mark.parametrize("name", NULLS)
def test_null_is_the_default(server, name):
    beside = NULLS[name]
    null, left_out = (ask(server, **beside, **{name: value}) for value in (None, ...))
    assert left_out.status == null.status == 200
    choices, expected = null.body["choices"], left_out.body["choices"]
    assert len(choices) == len(expected) == 1
    assert choices[0]["message"]["content"] == expected[0]["message"]["content"]
    assert choices[0]["logprobs"] == expected[0]["logprobs"]


@proof
def test_null_is_the_default_of_all_at_once(server):
    answer = ask(server, **dict.fromkeys(NULLS))
    assert answer.status == 200
    assert len(answer.body["choices"][0]["message"]["content"].split()) == 3


@proof
def test_no_limit_of_tokens_is_the_default_one(server):
    """The default is 16 tokens in 0.16, and later as many as the engine has room for."""
    null, left_out = (ask(server, max_tokens=value) for value in (None, ...))
    assert left_out.status == null.status == 200
    contents = [a.body["choices"][0]["message"]["content"].split() for a in (null, left_out)]
    assert contents[0] == contents[1]
    assert len(contents[0]) >= 16


@pytest.mark.parametrize("value", ["0", 0.0, False])
def test_what_is_no_null_is_heeded(server, value):
    answers = [ask(server, temperature=t) for t in (value, 0)]
    contents = [a.body["choices"][0]["message"]["content"] for a in answers]
    assert contents[0] == contents[1]
