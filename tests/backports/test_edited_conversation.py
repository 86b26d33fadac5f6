"""Conversations that have become shorter than the turn before says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch.backports.upstream.edited_conversation import EDITED_CONVERSATION

from ..conftest import RELEASE
from .checks import assert_state_of_record, needs, proof
from .endpoints import END, ROLES, ChatTokenizer, Server, endpoint

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(
    not Version("0.17") <= RELEASE < Version("0.19"),
    reason=f"{RELEASE} has no tokens of turns before, or does it otherwise",
)

USER, ASSISTANT = ROLES["user"], ROLES["assistant"]


class Forgetful(ChatTokenizer):
    """A template that leaves out the assistant's earlier turns, as some leave out reasoning."""

    def apply_chat_template(self, messages, **options):  # type: ignore[no-untyped-def]
        last = len(messages) - 1
        kept = [
            {**message, "content": ""}
            if message["role"] == "assistant" and index != last
            else message
            for index, message in enumerate(messages)
        ]
        return super().apply_chat_template(kept, **options)


@pytest.fixture
def server(device: Any) -> Server:
    needs(
        hasattr(endpoint("chat_completions"), "_replace_prefix_tokens"),
        "tokens of the turn before in the place of its text",
    )
    return Server()


def test_state(server):
    assert_state_of_record(EDITED_CONVERSATION)


def turn(content: str, prompt: list[int], generated: list[int]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": content,
        "prompt_token_ids": prompt,
        "generation_token_ids": generated,
    }


def prompt_of(server: Server, messages: list[dict[str, Any]]) -> list[int]:
    answer = server.post("/v1/chat/completions", messages=messages, max_tokens=2, temperature=0)
    assert answer.status == 200, answer.body
    return list(answer.body["choices"][0]["message"]["prompt_token_ids"])


BEFORE = [USER, 1, 2, END, ASSISTANT]


def with_reasoning(length: int) -> tuple[list[int], list[dict[str, Any]]]:
    """The tokens of a turn, and the conversation that goes on."""
    reasoning = [3] * length
    messages = [
        {"role": "user", "content": "1 2"},
        turn(" ".join(map(str, reasoning)), BEFORE, [*reasoning, END]),
        {"role": "user", "content": "12"},
    ]
    return [*BEFORE, *reasoning], messages


@proof
@pytest.mark.parametrize("length", [5, 6, 9, 30])
def test_reasoning_that_the_template_drops(server, length):
    server.app.config["tokenizer"] = Forgetful(128)
    tokens, messages = with_reasoning(length)
    # From 0.19 on, messages behind it can be missing.
    assert prompt_of(server, messages)[: len(tokens) + 1] == [*tokens, END]


@only_patched
@pytest.mark.parametrize("length", [*range(8), 30])
def test_what_follows_the_reasoning_stays(server, length):
    server.app.config["tokenizer"] = Forgetful(128)
    tokens, messages = with_reasoning(length)
    assert prompt_of(server, messages) == [*tokens, END, USER, 12, END, ASSISTANT]


@only_patched
def test_where_nothing_is_dropped_it_does_what_it_did(unpatched):
    replace = endpoint("chat_completions")._replace_prefix_tokens
    token = st.integers(1, 3)

    def answers() -> list[Any]:
        found = []

        @given(
            st.lists(token, min_size=1, max_size=9),
            st.lists(token, max_size=9),
            st.lists(token, max_size=9),
        )
        def ask(before: list[int], again: list[int], more: list[int]) -> None:
            found.append(replace(3, before, again, [*again, *more]))

        ask()
        return found

    without = answers()
    megatron_patch.install()
    assert answers() == without


@proof
def test_a_turn_without_tokens(server):
    messages = [
        {"role": "user", "content": "1 2"},
        turn("", [], []),
        {"role": "user", "content": "12"},
    ]
    assert prompt_of(server, messages) == [END, USER, 12, END, ASSISTANT]


@pytest.mark.parametrize("ended", [True, False])
def test_the_tokens_of_a_turn_take_the_place_of_its_text(server, ended):
    generated = [3, 44, 5, *([END] if ended else [])]
    messages = [
        {"role": "user", "content": "1 2"},
        turn("3 4 5", BEFORE, generated),
        {"role": "user", "content": "12"},
    ]
    expected = [*BEFORE, 3, 44, 5, END, USER, 12, END, ASSISTANT]
    assert prompt_of(server, messages) == expected


@proof
@pytest.mark.parametrize("length", range(12))
def test_as_many_tokens_as_there_are_are_looked_at(server, length):
    """Calls the function itself, with each length that the present conversation can have."""
    replace = endpoint("chat_completions")._replace_prefix_tokens
    present = [USER, 1, 2, END, ASSISTANT, 3, END, USER, 4, END, ASSISTANT][:length]
    before, again = [*BEFORE, 9, 9, END], [*BEFORE, 3, 3, 3, 3, END]
    found = replace(END, before, again, present)
    assert found[:7] == [*BEFORE, 9, 9]
    assert found[7:] == present[len(present) - len(found[7:]) :]
