"""Requests that need more KV blocks than there are, on whichever release is installed."""

from __future__ import annotations

import pytest
from packaging.version import Version

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.upstream.request_block_limit import REQUEST_BLOCK_LIMIT
from megatron_patch.testing.releases import context_parameters, engine_class

from ..conftest import RELEASE
from ..upstream import support
from .checks import assert_state_of_record, needs, proof
from .serving import Served, has_paused_buffer, serve, spec_of

pytestmark = pytest.mark.usefixtures("device")

#: Prompts can have 3 or 5 blocks, and this one needs 7.
LONG = testing.Request(tuple(range(100)), 4)
SHORT = (testing.Request((1, 2, 3), 5), testing.Request((4, 5), 4))
#: On both sides of the bounds of 5 blocks, and of 1 or 3 for active requests.
LENGTHS = [(16, 1), (16, 2), (10, 7), (10, 8), (33, 16), (33, 17), (75, 6), (75, 7), (81, 1)]


def guarantees() -> bool:
    """Whether blocks are set aside for one sequence of the greatest length, which is 8 blocks."""
    return "buffer_guaranteed_fraction" in context_parameters()


def blocks() -> int:
    """A number of blocks that leaves prompts 3 (where others are set aside) or 5."""
    if guarantees():
        return 12
    # Between 0.15 and 0.16, active requests have half of the blocks, and prompts no others.
    halved = not (has_paused_buffer() or "active_buffer_size_gb" in context_parameters())
    return 11 if halved else 6


def reference(requests):  # type: ignore[no-untyped-def]
    return testing.reference_decode(testing.build_model(testing.EngineSpec()), requests)


def assert_refused(found: Served | None, error: str = "BlockOverflowError") -> None:
    """The request is refused, as far as the release tells: 0.15 does not answer, 0.14 raises."""
    if not hasattr(engine_class(), "_add_request"):
        assert found == ("RAISED", (), ("ChunkOverflowError",))
    elif found is not None:
        assert found == ("FAILED", (), (error,))


def test_state():
    engine_class()
    assert_state_of_record(REQUEST_BLOCK_LIMIT)


@proof
@pytest.mark.parametrize("place", range(3))
def test_a_prompt_that_is_longer_than_the_cache_fails_alone(place):
    requests = [*SHORT[:place], LONG, *SHORT[place:]]
    engine = testing.build_engine(spec_of(blocks()))
    found = serve(engine, requests)
    assert_refused(found.pop(place))
    expected = reference(SHORT)
    assert [(one.status, one.tokens) for one in found if one] == [
        ("COMPLETED", tokens) for tokens in expected
    ]
    assert not engine.has_unfinished_requests()


@proof
def test_a_request_that_outgrows_the_cache_fails_alone():
    needs(has_paused_buffer(), "an engine that does not set blocks aside")
    engine = testing.build_engine(spec_of(blocks()))
    long, *short = serve(engine, [testing.Request(tuple(range(40)), 42), *SHORT])
    assert_refused(long)
    assert [one.tokens for one in short if one] == [*reference(SHORT)]


@proof
def test_a_request_that_outgrows_the_blocks_of_active_requests_fails_alone():
    needs(has_paused_buffer(), "a paused buffer")
    engine = testing.build_engine(spec_of(blocks(), paused=4))
    request = testing.Request(tuple(range(14)), 10)
    long, *short = serve(engine, [request, *SHORT])
    if hasattr(support.allocator(engine.context), "paused_limit"):
        # Paused requests have a limit there, and active ones have none.
        assert long == ("COMPLETED", *reference([request]), ())
    else:
        assert_refused(long)
    assert [one.tokens for one in short if one] == [*reference(SHORT)]


@proof
@pytest.mark.parametrize("num_tokens", [40, 41])
def test_a_request_that_just_fits_is_served(num_tokens):
    request = testing.Request(tuple(range(40)), num_tokens)
    (found,) = serve(testing.build_engine(spec_of(blocks())), [request])
    assert found == ("COMPLETED", *reference([request]), ())


def outcomes(spec: testing.EngineSpec) -> list[Served | None]:
    """What became of requests of all ``LENGTHS``, each alone on an engine."""
    found: list[Served | None] = []
    for length, num_tokens in LENGTHS:
        request = testing.Request(tuple(range(length)), num_tokens)
        engine = testing.build_engine(spec)
        try:
            found += serve(engine, [request], max_steps=40)
        except AssertionError:
            found.append(None)
        else:
            if engine.has_unfinished_requests():
                found[-1] = None
    return found


SPECS = {
    "chunks": {"enable_chunked_prefill": True, "max_tokens": 64},
    "paused": {"paused": 4},
    "paused and chunks": {"paused": 2, "enable_chunked_prefill": True, "max_tokens": 64},
    "paused and speculative": {
        "paused": 2,
        "num_speculative_tokens": 2,
        "materialize_only_last_token_logits": False,
    },
}


@pytest.mark.parametrize("name", SPECS)
def test_what_the_release_serves_is_served_and_all_else_is_refused(unpatched, name):
    fields = SPECS[name]
    if "num_speculative_tokens" in fields:
        needs("num_speculative_tokens" in context_parameters(), "speculative tokens")
    if "paused" in fields:
        needs(has_paused_buffer(), "a paused buffer")
    if "enable_chunked_prefill" in fields:
        needs(RELEASE >= Version("0.15"), "prompts in chunks")
    spec = spec_of(blocks(), **fields)
    before = outcomes(spec)
    megatron_patch.install()
    after = outcomes(spec)
    assert None not in after
    for one, other in zip(before, after, strict=True):
        assert one == other or one is None or one.status != "COMPLETED"
        if other is not None and other.status != "COMPLETED":
            assert other.status in ("FAILED", "RAISED")
    if RELEASE < Version("0.18") and "num_speculative_tokens" not in fields:
        assert [one is not None and one.status == "COMPLETED" for one in before] == [
            other is not None and other.status == "COMPLETED" for other in after
        ]


@pytest.mark.skipif(
    not Version("0.15") <= RELEASE < Version("0.18"), reason=f"{RELEASE} refuses such prompts"
)
def test_unpatched_such_a_prompt_blocks_the_queue(unpatched):
    engine = testing.build_engine(spec_of(blocks()))
    short, long, other = serve(engine, [SHORT[0], LONG, SHORT[1]])
    assert short is not None
    assert long is other is None
    assert engine.has_unfinished_requests()


@pytest.mark.skipif(RELEASE < Version("0.16"), reason=f"{RELEASE} has no paused buffer")
def test_unpatched_a_request_that_grows_ends_the_engine(unpatched):
    engine = testing.build_engine(spec_of(blocks(), paused=4))
    with pytest.raises(AssertionError, match="active_request_count == 0"):
        serve(engine, [testing.Request(tuple(range(14)), 10)])
