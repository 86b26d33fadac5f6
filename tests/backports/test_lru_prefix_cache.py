"""A prefix cache that is full, on whichever release is installed."""

from __future__ import annotations

import random
from itertools import dropwhile

import pytest
import torch
from packaging.version import Version

from megatron_patch import State, testing, text_edits
from megatron_patch.backports import SERIES
from megatron_patch.backports.upstream.lru_prefix_cache import LRU_PREFIX_CACHE
from megatron_patch.edits import Requires, Target
from megatron_patch.judge import judge
from megatron_patch.ledger import sources_of
from megatron_patch.model import Patch, Variant
from megatron_patch.sources import read_source
from megatron_patch.testing.releases import context_parameters
from megatron_patch.verdicts import Verdict

from ..conftest import RELEASE, SOURCE, expected_state
from ..upstream import support
from . import log_probs
from .checks import needs, proof, state_of

SHARES = RELEASE >= Version("0.17")
ORDERED = RELEASE >= Version("0.19")
NO_ACTIVE = "active_request_count == 0"

pytestmark = pytest.mark.usefixtures("device")
only_sharing = pytest.mark.skipif(not SHARES, reason=f"{RELEASE} has no prefix caching")
only_unordered = pytest.mark.skipif(
    not SHARES or ORDERED, reason=f"{RELEASE} has no prefix caching, or evicts in the right order"
)
policies = pytest.mark.parametrize("policy", ["REF_ZERO", "LRU"])

SIZE = 4  # tokens in a block


@pytest.fixture(scope="module")
def sharing(device) -> None:  # type: ignore[no-untyped-def]
    known = {"enable_prefix_caching", "prefix_caching_eviction_policy"}
    needs(known <= {*context_parameters()}, "prefix caching with a policy")


def spec(blocks: int, policy: str = "LRU", **fields) -> testing.EngineSpec:  # type: ignore[no-untyped-def]
    """A very small model, and a KV cache of so many blocks."""
    from megatron.core.inference.config import PrefixCachingEvictionPolicy

    fields.setdefault("max_requests", 8)
    options = {"prefix_caching_eviction_policy": PrefixCachingEvictionPolicy[policy]}
    return testing.EngineSpec(
        num_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        max_sequence_length=32,
        block_size_tokens=SIZE,
        buffer_size_gb=(blocks + 1.5) * 2 * SIZE * 32 * 4 / 1024**3,
        enable_prefix_caching=True,
        options=options,
        **fields,
    )


def tokens(start: int, count: int) -> tuple[int, ...]:
    """A prompt that shares nothing with those of other starts."""
    return tuple((start + 7 * i) % 128 for i in range(count))


def decode(engine, *requests: tuple[tuple[int, ...], int]) -> testing.Decoded:  # type: ignore[no-untyped-def]
    """Decode requests, given as prompt and number of tokens; no table has a block twice."""

    def check(engine, step) -> None:  # type: ignore[no-untyped-def]
        for row in engine.context.request_to_kv_block_ids.tolist():
            blocks = [block for block in row if block != -1]
            assert len(blocks) == len({*blocks})

    made = [testing.Request(*request) for request in requests]
    return testing.decode(engine, made, on_step=check, capture_logits=False)


@pytest.fixture(scope="module")
def model(sharing):  # type: ignore[no-untyped-def]
    return testing.build_model(spec(4))


def expected(model, *requests: tuple[tuple[int, ...], int]):  # type: ignore[no-untyped-def]
    """The tokens of the model alone, without any cache."""
    return testing.reference_decode(model, [testing.Request(*request) for request in requests])


def hashes(prompt: tuple[int, ...]) -> list[int]:
    """The hashes of the prompt's full blocks."""
    made = support.request(0, prompt, block_size_tokens=SIZE, enable_prefix_caching=True)
    return list(made.precomputed_block_hashes)


def cached(engine, prompt: tuple[int, ...]) -> int:  # type: ignore[no-untyped-def]
    """How many blocks of the prompt are cached, up to the first that is not."""
    blocks = vars(support.allocator(engine.context))
    known = blocks.get("kv_hash_to_block_id", blocks.get("hash_to_block_id"))
    found = [block_hash in known for block_hash in hashes(prompt)]
    assert not any(dropwhile(bool, found))
    return sum(found)


def test_state():
    testing.context_class()
    assert state_of(LRU_PREFIX_CACHE) is expected_state(
        State.APPLIED if SHARES else State.NOT_APPLICABLE
    )


# Engines in states in which unpatched releases go wrong. All have four blocks.


def decode_when_all_other_blocks_are_cached() -> testing.Decoded:
    engine = testing.build_engine(spec(4))
    decode(engine, (tokens(1, 3 * SIZE), 1))
    return decode(engine, (tokens(2, SIZE), 3))  # it needs a second block


@proof
def test_a_request_gets_the_block_of_one_that_has_ended(model):
    decoded = decode_when_all_other_blocks_are_cached()
    assert decoded.tokens == expected(model, (tokens(2, SIZE), 3))


@only_sharing
def test_unpatched_a_request_that_needs_a_cached_block_ends_the_engine(unpatched):
    with pytest.raises(AssertionError, match=NO_ACTIVE):
        decode_when_all_other_blocks_are_cached()


def decode_what_is_cached_in_part() -> tuple[int, testing.Decoded]:
    engine, prompt = testing.build_engine(spec(4)), tokens(1, 3 * SIZE)
    decode(engine, (prompt, 1))
    decode(engine, (tokens(2, 2 * SIZE), 1))  # there is one free block for it
    return cached(engine, prompt), decode(engine, (prompt, 2))


@proof
def test_the_last_blocks_of_a_prompt_are_evicted_first(model):
    left, decoded = decode_what_is_cached_in_part()
    assert left == 2
    assert decoded.tokens == expected(model, (tokens(1, 3 * SIZE), 2))


@only_unordered
def test_unpatched_a_prompt_without_its_first_block_ends_the_engine(unpatched, monkeypatch):
    monkeypatch.setitem(globals(), "cached", lambda *_: None)
    with pytest.raises(KeyError):
        decode_what_is_cached_in_part()


def decode_with_what_would_be_evicted() -> testing.Decoded:
    engine, prompt = testing.build_engine(spec(4)), tokens(1, 4 * SIZE - 1)
    decode(engine, (prompt[: 2 * SIZE], 1))
    decode(engine, (tokens(2, 2 * SIZE), 1))
    return decode(engine, (prompt, 1))  # the oldest blocks are its own


@proof
def test_blocks_that_a_request_shares_are_not_evicted_for_it(model):
    assert decode_with_what_would_be_evicted().tokens == expected(
        model, (tokens(1, 4 * SIZE - 1), 1)
    )


@only_unordered
def test_unpatched_a_request_has_a_block_twice_and_gets_wrong_tokens(unpatched, model, monkeypatch):
    monkeypatch.setattr(
        testing, "decode", lambda *a, on_step, _decode=testing.decode, **kw: _decode(*a, **kw)
    )
    decoded = decode_with_what_would_be_evicted()
    assert decoded.tokens != expected(model, (tokens(1, 4 * SIZE - 1), 1))


def add(context, request_id: int, prompt: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    fields = {"block_size_tokens": SIZE, "enable_prefix_caching": True}
    support.add(context, request_id, prompt, **fields)


def end_step(context, *active: int) -> None:  # type: ignore[no-untyped-def]
    """End a step: requests with a 0 have ended, the others go on."""
    mask = torch.tensor(active, dtype=torch.int32, device=context.request_ids.device)
    context.update_requests(mask, mask.long())


def is_let_in(context) -> bool:  # type: ignore[no-untyped-def]
    """Whether a request is admitted that shares two of three cached blocks and needs two more."""
    prompt = tokens(1, 4 * SIZE)
    add(context, 0, prompt[: 2 * SIZE])
    add(context, 1, tokens(2, SIZE))
    end_step(context, 0, 0)
    add(context, 2, tokens(3, SIZE))  # it stays
    made = support.request(3, prompt, block_size_tokens=SIZE, enable_prefix_caching=True)
    return bool(context.check_availability(made)[2])


@only_sharing
def test_a_request_that_needs_what_it_shares_waits():
    assert not is_let_in(testing.build_context(spec(4)))


@only_unordered
def test_unpatched_a_request_that_needs_what_it_shares_does_not_wait(unpatched):
    assert is_let_in(testing.build_context(spec(4)))


SHARED = tokens(1, 2 * SIZE)
#: After the first step of the third one, which has no block of its own, each needs another one.
SHARING = ((SHARED + tokens(5, 3), 4), (tokens(2, 3), 4), (SHARED, 4))


def fill_all_blocks(context) -> list[int]:  # type: ignore[no-untyped-def]
    """Two steps, at the end of which all blocks are full; the requests that are left."""
    for index, (prompt, _) in enumerate(SHARING):
        add(context, index, prompt)
        if index:
            end_step(context, *[1] * (index + 1))
    return context.request_ids[: context.total_request_count].tolist()


@proof
@pytest.mark.usefixtures("sharing")
@policies
def test_blocks_that_are_shared_are_not_counted_on_when_requests_are_evicted(policy):
    assert fill_all_blocks(testing.build_context(spec(4, policy))) == [0]


@only_sharing
@policies
def test_unpatched_no_block_is_released_by_evicting_what_only_shares(unpatched, policy):
    with pytest.raises(AssertionError, match=NO_ACTIVE):
        fill_all_blocks(testing.build_context(spec(4, policy)))


@only_sharing
@policies
def test_requests_that_share_blocks_and_do_not_fit_together_all_end(model, policy):
    engine = testing.build_engine(spec(4, policy))
    assert decode(engine, *SHARING).tokens == expected(model, *SHARING)
    assert engine.evicted_request_count == 2


# A request that comes back after an eviction or a suspension is computed anew.


def with_log_probs(engine, *requests, on_step=None):  # type: ignore[no-untyped-def]
    """Decode with log probs of prompts and of generated tokens; the merged requests."""
    made = [testing.Request(*request) for request in requests]
    decoded = testing.decode(
        engine,
        made,
        on_step=on_step,
        capture_logits=False,
        sampling={"return_log_probs": True, "skip_prompt_log_probs": False},
    )
    assert any(len(record.requests) > 1 for record in decoded.records)  # some came back
    return [record.merge() for record in decoded.records]


def log_probs_spec(blocks: int, policy: str, **fields) -> testing.EngineSpec:  # type: ignore[no-untyped-def]
    return spec(blocks, policy, materialize_only_last_token_logits=False, **fields)


def assert_log_probs_of_the_model(model, requests, merged) -> None:  # type: ignore[no-untyped-def]
    """Each token but a prompt's first has its own log prob, and there are no others."""
    assert tuple(tuple(one.generated_tokens) for one in merged) == expected(model, *requests)
    for (prompt, _), one in zip(requests, merged, strict=True):
        of_prompt, of_generated = log_probs.of(model, prompt, one.generated_tokens)
        assert one.prompt_log_probs == pytest.approx(of_prompt, abs=1e-4)
        assert one.generated_log_probs == pytest.approx(of_generated, abs=1e-4)


@only_sharing
def test_prompts_that_share_nothing_have_all_log_probs_after_an_eviction(model):
    requests = [(tokens(index, 2 * SIZE), 8) for index in range(3)]
    engine = testing.build_engine(log_probs_spec(9, "LRU"))
    merged = with_log_probs(engine, *requests)
    assert engine.evicted_request_count > 0
    assert_log_probs_of_the_model(model, requests, merged)


@only_sharing
@policies
def test_samples_of_one_prompt_have_all_log_probs_after_evictions(model, policy):
    requests = [(tokens(1, SIZE - 1), 12)] * 4
    engine = testing.build_engine(log_probs_spec(7, policy))
    merged = with_log_probs(engine, *requests)
    assert engine.evicted_request_count > 0
    assert_log_probs_of_the_model(model, requests, merged)


def cycle_at(number: int):  # type: ignore[no-untyped-def]
    """Suspend and resume before step ``number``."""

    def on_step(engine, step) -> None:  # type: ignore[no-untyped-def]
        if step == number:
            testing.suspend(engine)
            testing.resume(engine)

    return on_step


@only_sharing
@policies
def test_samples_of_one_prompt_have_all_log_probs_after_a_suspension(model, policy):
    requests = [(tokens(1, SIZE - 1), 12)] * 2
    engine = testing.build_engine(log_probs_spec(16, policy, kv_cache_management_mode="recompute"))
    merged = with_log_probs(engine, *requests, on_step=cycle_at(8))
    assert_log_probs_of_the_model(model, requests, merged)


@only_sharing
@pytest.mark.parametrize("change", [2, 3])
def test_a_request_that_comes_back_is_decoded_on_the_weights_of_now(change):
    """The weights are changed in place between two steps, as in RL, and the cache is kept."""
    engine, second = testing.build_engine(spec(9)), testing.build_model(spec(9, seed=1))
    first = engine.controller.inference_wrapped_model.model
    engine._generation_epoch = 0

    def on_step(engine, step) -> None:  # type: ignore[no-untyped-def]
        if step == change:
            assert not engine.evicted_request_count
            with torch.no_grad():
                for old, new in zip(first.parameters(), second.parameters(), strict=True):
                    old.copy_(new)
            engine._generation_epoch = 1

    requests = [testing.Request(tokens(index, 2 * SIZE), 8) for index in range(3)]
    decoded = testing.decode(engine, requests, on_step=on_step, capture_logits=False)
    back = [part for record in decoded.records for part in record.requests[1:]]
    assert back
    for part in back:
        request = (tuple(part.prompt_tokens.tolist()), len(part.generated_tokens))
        assert (tuple(part.generated_tokens),) == expected(second, request)
        assert part.kv_cache_epoch == [(0, 1)]


def with_variant(variant: Variant) -> Patch:
    """The patch with only one of its variants."""
    sources = sources_of(LRU_PREFIX_CACHE)
    known = tuple(source for source in sources if source.proved == variant.name)
    return LRU_PREFIX_CACHE._replace(variants=(variant,), sources=known)


@only_sharing
def test_source_with_hashes_for_what_comes_back_is_not_taken_for_source_with_this_patch():
    verdicts = [
        (variant, judge(with_variant(variant), series=SERIES))
        for variant in LRU_PREFIX_CACHE.variants
    ]
    (variant,) = [v for v, found in verdicts if found.verdict is not Verdict.DRIFTED]
    modules = {Target.parse(edit.target).module for edit in variant.edits}
    texts = {module: read_source(module) or "" for module in modules}
    for edit in () if SOURCE else variant.edits:
        if isinstance(edit, Requires):
            continue
        module = Target.parse(edit.target).module
        texts[module] = text_edits.with_edits(module, texts[module], [edit])

    def verdict() -> Verdict:
        def read(module: str) -> str | None:
            return texts.get(module) or read_source(module)

        return judge(LRU_PREFIX_CACHE, read, series=SERIES).verdict

    assert verdict() is Verdict.UPSTREAMED
    (module,) = [module for module in texts if module.endswith("inference_request")]
    old = "            kv_cache_epoch=kv_cache_epoch,\n        )\n        # Preserve"
    assert texts[module].count(old) == 1
    new = old.replace(
        "        )",
        "            block_size_tokens=old_request.block_size_tokens,\n"
        "            enable_prefix_caching=old_request.enable_prefix_caching,\n        )",
    )
    texts[module] = texts[module].replace(old, new)
    assert verdict() is Verdict.DRIFTED


# All together.


@only_sharing
@pytest.mark.parametrize(("blocks", "chunked", "rounds"), [(10, False, 16), (18, True, 4)])
def test_a_thousand_requests_get_the_tokens_of_the_model_alone(model, blocks, chunked, rounds):
    """50 at a time, with common prefixes. The cache has room for each of them, but not for all."""
    engine = testing.build_engine(spec(blocks, enable_chunked_prefill=chunked))
    context, rng = engine.context, random.Random(0)
    stems = [tokens(rng.randrange(128), rng.choice((4, 8, 12, 17))) for _ in range(8)]
    prompts = [s[: rng.randint(0, len(s))] + tokens(i, 1 + i % 6) for i, s in enumerate(stems * 4)]
    prompts += stems
    most = expected(model, *((prompt, 4) for prompt in prompts))
    for _ in range(rounds):
        chosen = [(rng.randrange(len(prompts)), rng.randint(1, 4)) for _ in range(50)]
        decoded = decode(engine, *((prompts[index], count) for index, count in chosen))
        assert decoded.tokens == tuple(most[index][:count] for index, count in chosen)
        allocator = context.kv_block_allocator
        assert not allocator.block_ref_counts.any()
        evictable = int(allocator.get_evictable_block_count())
        assert support.free_blocks(context) + evictable == blocks
        assert all(cached(engine, prompt) <= len(prompt) // SIZE for prompt in prompts)
    assert engine.evicted_request_count > 0
