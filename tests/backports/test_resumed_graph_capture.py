"""Requests of a suspended engine that captures its graphs again, on whichever release it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_patch import testing
from megatron_patch.backports.ours.resumed_graph_capture import RESUMED_GRAPH_CAPTURE
from megatron_patch.testing.decoding import add_request, has_work, stepper
from megatron_patch.testing.graph_counts import counted
from megatron_patch.testing.releases import context_parameters, engine_class

from ..upstream import support
from . import hybrids, speculating
from .checks import assert_state_of_record, needs, proof

FIRST = testing.Request((5, 6, 7, 8), 12)
SECOND = testing.Request(tuple(range(1, 30)), 9)
LATE = testing.Request((9, 10), 7, arrival_step=4)
LONG = testing.Request(tuple(i * i % 127 for i in range(110)), 6)


@pytest.fixture(autouse=True)
def no_other_graphs(device: Any) -> Iterator[None]:
    """No graphs of another scope, which 0.17 takes for those of the new engine."""
    testing.drop_cuda_graphs()
    yield
    testing.drop_cuda_graphs()


SCHEDULINGS = pytest.mark.parametrize("scheduling", ["legacy", "async"])


def fields_of(scheduling: str | None = None, **fields: Any) -> dict[str, Any]:
    """Fields of an engine with CUDA graphs that offloads its KV cache."""
    needs(hasattr(engine_class(), "suspend"), "suspend()")
    needs("kv_cache_management_mode" in context_parameters(), "modes of a suspension")
    if scheduling == "async":
        needs(scheduling in speculating.schedulings(), "asynchronous scheduling")
        fields["options"] = speculating.options_of(scheduling)
    return {
        "num_cuda_graphs": 2,
        "cuda_graph_scope": "layer",
        "kv_cache_management_mode": "offload",
        "max_sequence_length": 192,
        "materialize_only_last_token_logits": False,
        **fields,
    }


def spec_of(scheduling: str | None = None, **fields: Any) -> testing.EngineSpec:
    return testing.EngineSpec(**fields_of(scheduling, **fields))


def suspending(steps: Collection[int]) -> Callable[[Any, int], None]:
    """Suspends and resumes an engine before each of ``steps``."""

    def on_step(engine: Any, step: int) -> None:
        if step in steps:
            testing.suspend(engine)
            testing.resume(engine)

    return on_step


def answers(record: Any) -> Any:
    (part,) = record.requests
    return list(part.generated_tokens), part.prompt_log_probs, part.generated_log_probs


def decode(
    spec: testing.EngineSpec, requests: Sequence[testing.Request], steps: Collection[int]
) -> Any:
    """The answers of an engine that is suspended before ``steps``, its steps and free blocks."""
    engine = testing.build_engine(spec)
    found = testing.decode(
        engine,
        requests,
        on_step=suspending(steps),
        capture_logits=False,
        max_steps=60,
        sampling={"return_log_probs": True},
    )
    context = engine.context
    assert context.total_request_count == 0
    return list(map(answers, found.records)), found.steps, support.free_blocks(context)


def assert_as_if_never_suspended(
    spec: testing.EngineSpec, requests: Sequence[testing.Request], steps: Collection[int]
) -> None:
    assert decode(spec, requests, steps) == decode(spec, requests, ())


def needs_chunks_that_survive(
    spec: testing.EngineSpec, requests: Sequence[testing.Request]
) -> None:
    """Skip where a prompt between two chunks is lost in a suspension without graphs, too."""
    plain = replace(spec, num_cuda_graphs=None, cuda_graph_scope=None)
    try:
        kept = decode(plain, requests, (1,)) == decode(plain, requests, ())
    except (AssertionError, KeyError):
        kept = False
    needs(kept, "suspensions between two chunks of a prompt")


def test_state():
    engine_class()
    assert_state_of_record(RESUMED_GRAPH_CAPTURE)


@proof
@SCHEDULINGS
@pytest.mark.parametrize("steps", [(1,), (3,), (2, 3, 6)], ids=str)
def test_requests_in_decoding_go_on(scheduling, steps):
    assert_as_if_never_suspended(spec_of(scheduling), [FIRST, SECOND, LATE], steps)


@proof
@SCHEDULINGS
@pytest.mark.parametrize("steps", [(1,), (2,), (1, 2, 4)], ids=str)
@pytest.mark.parametrize("before", [[], [FIRST]], ids=["alone", "behind another"])
def test_a_prompt_between_two_chunks_goes_on(scheduling, steps, before):
    spec = spec_of(scheduling, enable_chunked_prefill=True, num_cuda_graphs=1)
    needs_chunks_that_survive(spec, [*before, LONG])
    assert_as_if_never_suspended(spec, [*before, LONG], steps)


@proof
@SCHEDULINGS
def test_speculative_tokens(scheduling):
    speculating.needs_speculative_tokens()
    spec = spec_of(scheduling, num_speculative_tokens=2)
    assert_as_if_never_suspended(spec, [FIRST, SECOND, LATE], (2, 5))


@proof
@SCHEDULINGS
def test_one_graph_of_all_layers(scheduling):
    spec = spec_of(scheduling, cuda_graph_scope="block")
    assert_as_if_never_suspended(spec, [FIRST, SECOND, LATE], (3,))


def test_speculative_tokens_in_one_graph_of_all_layers():
    spec = spec_of("async", cuda_graph_scope="block", num_speculative_tokens=2)
    assert_as_if_never_suspended(spec, [FIRST, SECOND, LATE], (2, 5))


@proof
def test_what_is_cached_of_their_prompts_is_found():
    needs("enable_prefix_caching" in context_parameters(), "a prefix cache")
    spec = spec_of(enable_prefix_caching=True)
    again = testing.Request((*SECOND.prompt, 3, 4), 5, arrival_step=4)
    computed = []
    for steps in ((2,), ()):
        engine = testing.build_engine(spec)
        requests = [SECOND, FIRST, again]
        testing.decode(engine, requests, on_step=suspending(steps), max_steps=60)
        computed.append(engine.context.lifetime_prefill_token_count)
    assert computed[0] == computed[1]
    assert computed[1] < sum(len(request.prompt) for request in requests)


@proof
@pytest.mark.parametrize("chunked", [False, True], ids=["whole prompts", "chunks"])
def test_states_of_a_hybrid_model(chunked):
    options = hybrids.options(2)
    spec = spec_of(options=options, buffer_size_gb=0.02, enable_chunked_prefill=chunked)
    requests = [FIRST, SECOND, LATE, *([LONG] if chunked else [])]
    if chunked:
        needs_chunks_that_survive(spec_of(enable_chunked_prefill=True), requests)
    assert_states(testing.build_engine(spec), requests)


def test_cached_states_of_a_hybrid_model():
    spec = hybrids.caching(3, **fields_of())
    again = testing.Request((*SECOND.prompt, 3, 4), 5, arrival_step=4)
    assert_states(testing.build_engine(spec), [FIRST, SECOND, LATE, again])


def assert_states(engine: Any, requests: Sequence[testing.Request]) -> None:
    """The states have seen each token once, in order, and the tokens are the model's own."""
    counted = hybrids.TokenCount(engine)
    found = testing.decode(
        engine, requests, on_step=suspending((1, 2, 3, 6)), capture_logits=False, max_steps=60
    )
    assert counted.wrong == []
    model = testing.build_model(spec_of())
    assert found.tokens == testing.reference_decode(model, requests, found.tokens)


def running(engine: Any, requests: Sequence[testing.Request], steps: int) -> None:
    """Lead an engine to where it has made ``steps`` steps with ``requests``."""
    step = stepper(engine, {})
    for request in requests:
        add_request(engine, request, {})
    for _ in range(steps):
        step()


def bookkeeping(context: Any) -> dict[str, Any]:
    """Copies of all numbers, tensors and tables of a context, and of the keys and values in it.

    Left out are the dummy block, the copies of a suspension, a cache of views that a suspension
    empties, and what a step writes anew.
    """
    left_out = ("_offloadable", "_input_position_views", "intermediate_")
    names = ("mamba_metadata", "mamba_slot_allocator", "gpu_view")
    owners = [context, support.allocator(context), *(getattr(context, n, None) for n in names)]
    found: dict[str, Any] = {}
    for owner in filter(None, owners):
        for name, value in vars(owner).items():
            if not name.startswith(left_out):
                found[f"{type(owner).__name__}.{name}"] = _copied(value)
            if name == "memory_buffer":
                found[f"{type(owner).__name__}.{name}"] = value[:, :, :-1].clone()
    return {name: value for name, value in found.items() if value is not None}


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(_copied, value))
    return value if isinstance(value, (bool, int, float)) else None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):  # bit for bit: what was never written may be NaN
        bits, others = (tensor.reshape(-1).view(torch.uint8) for tensor in (one, other))
        return torch.equal(bits, others)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def addresses(context: Any) -> dict[str, int]:
    """Where the tensors of a context are, which graphs may refer to. The offloaded ones move."""
    return {
        name: value.data_ptr()
        for owner in (context, *filter(None, [getattr(context, "gpu_view", None)]))
        for name, value in vars(owner).items()
        if isinstance(value, torch.Tensor) and name not in context._offloadable_tensor_names
    }


CONTEXTS: dict[str, Callable[[], testing.EngineSpec]] = {
    "plain": spec_of,
    "async": lambda: spec_of("async"),
    "prefix cache": lambda: spec_of(enable_prefix_caching=True),
    "chunks": lambda: spec_of(enable_chunked_prefill=True),
    "speculative": lambda: spec_of(num_speculative_tokens=2),
    "hybrid": lambda: spec_of(options=hybrids.options(2), buffer_size_gb=0.02),
    "hybrid with a prefix cache": lambda: hybrids.caching(3, **fields_of()),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_all_bookkeeping_is_what_it_was(name):
    engine = testing.build_engine(CONTEXTS[name]())
    running(engine, [FIRST, SECOND, *([LONG] if name == "chunks" else [])], steps=2)
    context = engine.context
    before, there = bookkeeping(context), addresses(context)
    with counted() as count:
        testing.suspend(engine)
        testing.resume(engine)
    assert count.captures > 0
    after = bookkeeping(context)
    assert after.keys() == before.keys()
    assert [key for key in before if not _same(before[key], after[key])] == []
    assert addresses(context) == there


def test_the_prefix_cache_of_a_context_without_requests_is_emptied():
    """As released. What is in it may be of weights that have changed meanwhile."""
    needs("prefix_caching_eviction_policy" in context_parameters(), "a prefix cache that stays")
    from megatron.core.inference.config import PrefixCachingEvictionPolicy

    options = {"prefix_caching_eviction_policy": PrefixCachingEvictionPolicy.LRU}
    spec = spec_of(enable_prefix_caching=True, options=options)
    engine = testing.build_engine(spec)
    running(engine, [SECOND], steps=SECOND.num_tokens + 1)
    assert not has_work(engine)
    allocator = support.allocator(engine.context)
    assert allocator.kv_hash_to_block_id
    suspending([0])(engine, 0)
    assert not allocator.kv_hash_to_block_id
    assert support.free_blocks(engine.context) == support.all_blocks(engine.context) - 1


@pytest.mark.parametrize("mode", ["persist", "offload", "recompute"])
def test_a_context_without_requests_is_reset_as_released(mocker, mode):
    """After each graph, and not before the first one."""
    engine = testing.build_engine(spec_of(kv_cache_management_mode=mode))
    running(engine, [FIRST], steps=FIRST.num_tokens + 1)
    assert not has_work(engine)
    reset = mocker.spy(engine.context, "reset")
    suspending([0])(engine, 0)
    graphs = len(engine.context.cuda_graph_batch_dimensions_list)
    assert reset.call_count == (0 if mode == "persist" else graphs)
