"""Parameters of HTTP requests that have to be heeded, and such as mean nothing."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_patch.backports.ours.http_parameters import HTTP_PARAMETERS

from .checks import assert_state_of_record, proof
from .endpoints import Server

pytestmark = pytest.mark.usefixtures("device")

PATHS = ("/v1/chat/completions", "/v1/completions")
BODY: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "1 2 3 4 5"}]},
    "/v1/completions": {"prompt": "1 2 3 4 5"},
}
each_path = pytest.mark.parametrize("path", PATHS)


@pytest.fixture(scope="module")
def server(device: Any) -> Server:
    return Server()


def ask(server: Server, path: str, **fields: Any) -> Any:
    return server.post(path, **{**BODY[path], "max_tokens": 6, "temperature": 0, **fields})


def text_of(answer: Any) -> str:
    assert answer.status == 200, answer.body
    (choice,) = answer.body["choices"]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def test_state(server):
    assert_state_of_record(HTTP_PARAMETERS)


@proof
@each_path
@pytest.mark.parametrize(("number", "as_list"), [(1, False), (3, True)])
def test_the_text_ends_at_a_stop_word(server, path, number, as_list):
    words = text_of(ask(server, path)).split()
    stop = words[number]
    kept = words[: words.index(stop)]
    answer = ask(server, path, stop=["126 126", stop] if as_list else stop)
    # In 0.16 the engine leaves the word at the end.
    assert text_of(answer).split() in (kept, [*kept, stop])


@proof
def test_each_choice_of_a_chat_ends_at_a_stop_word(server):
    words = text_of(ask(server, PATHS[0])).split()
    answer = ask(server, PATHS[0], stop=words[2], n=2)
    assert answer.status == 200
    for choice in answer.body["choices"]:
        assert len(choice["message"]["content"].split()) <= 3


@each_path
@pytest.mark.parametrize("stop", [None, [], "", [""], "126 126 126"])
def test_what_stops_nothing(server, path, stop):
    assert text_of(ask(server, path, stop=stop)) == text_of(ask(server, path))


@proof
@each_path
@pytest.mark.parametrize("stop", [5, [5], {"1": 2}], ids=str)
def test_a_stop_that_is_no_text_is_refused(server, path, stop):
    answer = ask(server, path, stop=stop)
    assert answer.status == 400
    assert "stop" in answer.body
    assert text_of(ask(server, path))


NULLS: dict[str, dict[str, Any]] = {
    "temperature": {"top_k": 1, "top_p": 0.0},
    "top_p": {},
    "top_k": {},
    "echo": {},
    "logprobs": {},
    "stop": {},
    "ignore_eos": {},
    "n": {},
}


@proof
@pytest.mark.parametrize("name", NULLS)
def test_null_is_the_default(server, name):
    null = ask(server, PATHS[1], **{"temperature": 0, **NULLS[name], name: None})
    given = {"temperature": 0, **NULLS[name]}
    given.pop(name, None)
    left_out = server.post(PATHS[1], **BODY[PATHS[1]], max_tokens=6, **given)
    assert text_of(null) == text_of(left_out)
    assert null.body["choices"][0]["logprobs"] == left_out.body["choices"][0]["logprobs"]


@proof
def test_null_is_the_default_limit(server):
    assert len(text_of(ask(server, PATHS[1], max_tokens=None)).split()) == 16


@proof
@each_path
@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
def test_a_wrong_type_is_the_callers_fault(server, path, name):
    answer = ask(server, path, **{name: [1]})
    assert answer.status == 400
    assert "Invalid sampling parameter" in answer.body


@each_path
def test_a_number_in_words_is_the_callers_fault_as_ever(server, path):
    answer = ask(server, path, temperature="warm")
    assert answer.status == 400
    assert "Invalid sampling parameter" in answer.body


@proof
@each_path
def test_a_number_that_is_none_is_the_callers_fault(server, path):
    assert ask(server, path, top_k=float("inf")).status == 400
