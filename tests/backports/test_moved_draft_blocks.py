"""To which blocks speculative tokens are written, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.ours.moved_draft_blocks import MOVED_DRAFT_BLOCKS
from megatron_patch.testing.releases import engine_class
from tools.differential import oracles, running
from tools.differential.configuration import decode

from . import speculating
from .checks import assert_state_of_record, proof

pytestmark = pytest.mark.usefixtures("device")

#: Requests are evicted, and others resumed whose tokens begin in one block and end in the next.
EVICTED = decode(
    '{"requests":[{"length":22},{"stem":4,"length":5,"num_tokens":7,"arrival":3},{"stem":1,'
    '"length":13,"num_tokens":7}],"spare_blocks":0,"only_last":false,"speculative":1}'
)
#: The same with a prompt in chunks, which is put last.
IN_CHUNKS = decode(
    '{"requests":[{"length":5,"num_tokens":30},{"stem":4,"length":6,"num_tokens":30},{"stem":1,'
    '"length":44,"num_tokens":8,"arrival":3},{"stem":3,"length":44,"num_tokens":9,"arrival":4}],'
    '"only_last":false,"speculative":3,"chunked":true,"block_size":4}'
)


@pytest.fixture
def speculative(device: Any) -> None:
    speculating.needs_speculative_tokens()


def test_state(device):
    engine_class()
    assert_state_of_record(MOVED_DRAFT_BLOCKS)


@proof
@pytest.mark.parametrize("configuration", [EVICTED, IN_CHUNKS], ids=["evicted", "in chunks"])
def test_each_token_is_written_to_a_block_of_its_request(speculative, configuration):
    observation = running.run(configuration)
    assert observation.record["error"] is None
    assert [forward.astray for forward in observation.forwards if forward.astray] == []


@pytest.mark.parametrize("configuration", [EVICTED, IN_CHUNKS], ids=["evicted", "in chunks"])
def test_requests_get_the_tokens_of_the_model_alone(speculative, configuration):
    observation = running.run(configuration)
    assert oracles.complaints(configuration, observation) == []


def test_where_no_request_is_moved_nothing_changes(speculative, unpatched):
    requests = [testing.Request(tuple(range(3, 9 + n)), 20, n) for n in range(4)]
    spec = speculating.spec(2, block_size_tokens=8)
    without = testing.decode(testing.build_engine(spec), requests)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MEGATRON_PATCH", MOVED_DRAFT_BLOCKS.id)
        megatron_patch.install()
        found = testing.decode(testing.build_engine(spec), requests)
        megatron_patch.uninstall()
    assert found.tokens == without.tokens
    assert all(one.equal(other) for one, other in zip(found.logits, without.logits, strict=True))
