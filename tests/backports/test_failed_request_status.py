"""The status of an answer to what the engine refused."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_patch.backports.upstream.failed_request_status import FAILED_REQUEST_STATUS

from .checks import assert_state_of_record, proof
from .endpoints import Server

pytestmark = pytest.mark.usefixtures("device")

TOO_LONG = " ".join(["1"] * 130)
BODY: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": TOO_LONG}]},
    "/v1/completions": {"prompt": [TOO_LONG, "1 2"]},
}


@pytest.fixture(scope="module")
def server(device: Any) -> Server:
    return Server()


def test_state(server):
    assert_state_of_record(FAILED_REQUEST_STATUS)


@proof
@pytest.mark.parametrize("path", BODY)
def test_what_is_too_long_is_refused(server, path):
    answer = server.post(path, **BODY[path], max_tokens=4, temperature=0)
    assert answer.status == 400
    assert "OverflowError" in answer.body


def test_others_are_answered(server):
    answer = server.post("/v1/completions", prompt=["1 2"], max_tokens=4, temperature=0)
    assert answer.status == 200
    assert len(answer.body["choices"][0]["text"].split()) == 4
