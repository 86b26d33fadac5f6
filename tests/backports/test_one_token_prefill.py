"""Prefills of one token: prompts, last chunks, and what the prefix cache leaves of a prompt.

0.14 and 0.15 never needed the patch. From 0.18 on these tests run upstream's own code, and with
grouped heads `grouped-one-token-prompts`.
"""

from __future__ import annotations

import pytest
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.one_token_prefill import ONE_TOKEN_PREFILL
from megatron_patch.testing.releases import context_parameters, engine_class, parameters_of

from ..conftest import RELEASE, expected_state
from .checks import ONE_TOKEN_BATCHES as BATCHES
from .checks import assert_same_outputs, needs, proof, state_of

CHUNKS = RELEASE >= Version("0.15")
SHARES = RELEASE >= Version("0.17")
PATCHED = Version("0.16") <= RELEASE < Version("0.18")

# Half as many heads of keys as of queries, where flash-attn has its short cut.
GROUPED = [None, 2]
# On 0.16 only grouped heads go wrong without the patch.
FAILING = [None, 2] if SHARES else [2]

pytestmark = pytest.mark.usefixtures("device")
only_chunking = pytest.mark.skipif(not CHUNKS, reason=f"{RELEASE} does not split prompts")
only_sharing = pytest.mark.skipif(not SHARES, reason=f"{RELEASE} has no prefix caching")
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} does not get the patch")
grouped = pytest.mark.parametrize("groups", GROUPED, ids=["heads", "grouped-heads"])

batches = pytest.mark.parametrize("requests", BATCHES.values(), ids=BATCHES)


def decode(requests, spec):  # type: ignore[no-untyped-def]
    return testing.decode(testing.build_engine(spec), requests, capture_logits=False).tokens


def known_fields() -> set[str]:
    """The arguments that the context and the engine take."""
    return {*context_parameters(), *parameters_of(engine_class())}


def computes_longest_query() -> bool:
    """Whether metadata on the GPU says how long the longest query is, which the patch corrects."""
    try:
        from megatron.core.inference.contexts.attention_context import mha_metadata
    except ImportError:
        return False
    return "update" in vars(mha_metadata.NonGraphedMHAMetadata)


def state() -> State:
    return state_of(ONE_TOKEN_PREFILL)


def test_state():
    testing.build_engine(testing.EngineSpec())
    expected = State.NOT_APPLICABLE if RELEASE < Version("0.16") else State.UPSTREAMED
    assert state() is expected_state(State.APPLIED if PATCHED else expected)


@grouped
@batches
@pytest.mark.parametrize("graphs", [None, 1], ids=["eager", "padded"])
def test_prompts_of_one_token_decode_as_with_the_model_alone(requests, graphs, groups):
    spec = testing.EngineSpec(num_query_groups=groups, num_cuda_graphs=graphs)
    expected = testing.reference_decode(testing.build_model(spec), requests)
    assert decode(requests, spec) == expected


@proof
@pytest.mark.parametrize("groups", [None, 2], ids=["heads", "grouped-heads"])
@pytest.mark.parametrize("name", ["alone", "joining"])
def test_the_longest_query_of_one_token_prefills_is_that_of_prefills(name, groups):
    if groups:
        # Otherwise it is computed on the host, which is the concern of `grouped-one-token-prompts`.
        needs(computes_longest_query(), "a longest query that the metadata computes")
    spec = testing.EngineSpec(num_query_groups=groups)
    expected = testing.reference_decode(testing.build_model(spec), BATCHES[name])
    assert decode(BATCHES[name], spec) == expected


@only_patched
def test_unpatched_a_step_with_prefills_of_one_token_raises(unpatched):
    for groups in FAILING:
        for batch in ("alone", "several", "joining"):
            with pytest.raises(RuntimeError, match="must have shape"):
                decode(BATCHES[batch], testing.EngineSpec(num_query_groups=groups))


def chunking(groups: int | None, **fields) -> testing.EngineSpec:  # type: ignore[no-untyped-def]
    fields = {"enable_chunked_prefill": True, "max_requests": 4, **fields}
    return testing.EngineSpec(
        num_layers=1, num_query_groups=groups, max_sequence_length=256, **fields
    )


def prompt(length: int) -> tuple[int, ...]:
    return tuple(7 * i * i % 127 for i in range(length))


@only_chunking
def test_prompts_of_all_lengths_decode_in_chunks_as_in_one():
    groups = GROUPED[-1]
    in_one = chunking(groups, enable_chunked_prefill=False, max_requests=64, max_tokens=4096)
    requests = [testing.Request(prompt(length), 2) for length in range(1, 3 * 64 + 1)]
    expected = decode(requests, in_one)
    engine = testing.build_engine(chunking(groups))
    for request, tokens in zip(requests, expected, strict=True):
        decoded = testing.decode(engine, [request], capture_logits=False)
        assert decoded.tokens == (tokens,)
        assert decoded.steps >= 1 + -(-len(request.prompt) // 64)


@only_chunking
@grouped
def test_a_last_chunk_of_one_token_joins_a_batch(groups):
    """Other requests decode meanwhile, and take tokens of a step from the chunks."""
    requests = [testing.Request((3, 4, 5), 9)]
    requests += [testing.Request(prompt(n), 3, arrival_step=2 + n % 3) for n in (63, 64, 127)]
    expected = testing.reference_decode(testing.build_model(chunking(groups)), requests)
    assert decode(requests, chunking(groups)) == expected


@proof
def test_a_last_chunk_of_one_token_decodes_as_the_model_alone():
    needs("enable_chunked_prefill" in known_fields(), "prompts in chunks")
    requests = [testing.Request(prompt(length), 3) for length in (65, 128)]
    expected = testing.reference_decode(testing.build_model(chunking(2)), requests)
    for request, tokens in zip(requests, expected, strict=True):
        assert decode([request], chunking(2)) == (tokens,)


@pytest.mark.skipif(RELEASE.release[:2] != (0, 16), reason=f"{RELEASE} leaves no such chunk")
def test_unpatched_a_last_chunk_of_one_token_raises(unpatched):
    for length in (65, 128, 191):
        with pytest.raises(RuntimeError, match="q must have shape"):
            decode([testing.Request(prompt(length), 3)], chunking(2))


def caching(groups: int | None) -> testing.EngineSpec:
    return testing.EngineSpec(enable_prefix_caching=True, num_query_groups=groups)


def repeated(length: int) -> list[testing.Request]:
    """The same prompt again and again: while the first is decoded, and twice in one step."""
    return [testing.Request(prompt(length), 9 - step, step) for step in (0, 2, 2)]


@only_sharing
@grouped
@pytest.mark.parametrize("length", [16, 17, 32, 33, 48])
def test_a_prompt_that_is_all_cached_decodes_as_the_first_time(groups, length):
    requests = repeated(length)
    engine = testing.build_engine(caching(groups))
    tokens = testing.decode(engine, requests, capture_logits=False).tokens
    assert tokens == testing.reference_decode(testing.build_model(caching(groups)), requests)
    if PATCHED:
        assert engine.context.lifetime_prefill_token_count == length + 1 + 1


@proof
@pytest.mark.parametrize("length", [32, 33])
def test_a_prompt_that_is_all_cached_decodes_as_the_model_alone(length):
    needs("enable_prefix_caching" in known_fields(), "prefix caching")
    expected = testing.reference_decode(testing.build_model(caching(None)), repeated(length))
    assert decode(repeated(length), caching(None)) == expected


@only_sharing
@only_patched
def test_unpatched_a_prompt_that_is_all_cached_raises(unpatched):
    for groups in FAILING:
        for length in (32, 33):
            with pytest.raises(RuntimeError, match="must have shape"):
                decode(repeated(length), caching(groups))


@only_patched
def test_tokens_and_logits_of_longer_prompts_are_unchanged(unpatched):
    requests = [testing.Request(prompt(length), 6, length % 4) for length in (2, 5, 30, 3)]
    without = testing.decode(testing.build_engine(testing.EngineSpec()), requests)
    megatron_patch.install()
    patched = testing.decode(testing.build_engine(testing.EngineSpec()), requests)
    assert_same_outputs(patched, without)
