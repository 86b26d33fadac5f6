"""Leads one of Megatron's contexts through steps, without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_patch import testing

from ..upstream import support

#: Fields of contexts whose steps differ.
CONTEXTS: dict[str, dict[str, Any]] = {
    "eager": {},
    "padded": {"num_cuda_graphs": 2, "max_requests": 16},
    "speculative": {
        "num_speculative_tokens": 2,
        "materialize_only_last_token_logits": False,
        "max_tokens": 256,
    },
}


def walks(request: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Steps: the requests that arrive, and the chance that each one goes on, with its random."""
    step = st.tuples(
        st.lists(request, max_size=8),
        st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        st.randoms(use_true_random=False),
    )
    return st.lists(step, min_size=1, max_size=10)


class Steps:
    """A context whose requests go on or end with each step."""

    def __init__(self, context: Any = None, **fields: Any) -> None:
        """``fields`` are those of the ``EngineSpec``, unless there is a context already."""
        spec = testing.EngineSpec(**{"max_requests": 8, "max_tokens": 192, **fields})
        self.context = context or testing.build_context(spec)
        self.added = 0

    def add(self, length: int, **sampling: Any) -> None:
        """Add a request with a prompt of ``length`` tokens, if there is room."""
        context = self.context
        if (
            context.total_request_count < context.max_requests
            and context.active_token_count + length <= context.max_tokens
        ):
            support.add(context, self.added, range(1, 1 + length), num_tokens=40, sampling=sampling)
            self.added += 1

    @property
    def active(self) -> int:
        return self.context.total_request_count - self.context.paused_request_count

    def end(self, goes_on: list[bool]) -> None:
        """What follows a step."""
        context = self.context
        device = context.request_ids.device
        mask = torch.tensor(goes_on, dtype=torch.uint8, device=device)
        tokens = torch.arange(len(goes_on), device=device)
        speculative = getattr(context, "num_speculative_tokens", 0)
        further = (tokens.expand(speculative, -1).clone(),) if speculative else ()
        context.update_requests(mask, tokens, *further)


def decode_step(requests: int = 4, **fields: Any) -> Steps:
    """A context with a few requests, in a decode step that has begun."""
    steps = Steps(**fields)
    for index in range(requests):
        steps.add(2 + index)
    steps.context.initialize_attention_state()
    steps.end([True] * requests)
    steps.context.initialize_attention_state()
    return steps


#: Compares what both versions of some methods make of a context.
Compare = Callable[[Any], None]


def compare_in_any_steps(
    name: str, samplings: st.SearchStrategy[dict[str, Any]], compare: Compare
) -> None:
    """Call ``compare`` in steps of the context ``name``, of decoding, of prompts, with padding and
    with paused requests. ``samplings`` are sampling parameters of the requests."""
    seen: Counter[str] = Counter()

    @given(walks(st.tuples(st.integers(2, 30), samplings)))
    def walk_and_compare(walk: Any) -> None:
        steps = Steps(**CONTEXTS[name])
        context = steps.context
        for requests, probability, chance in walk:
            for length, sampling in requests:
                steps.add(length, **sampling)
            if not steps.active:
                continue
            context.initialize_attention_state()
            compare(context)
            seen["padded"] += context.padded_active_request_count > steps.active
            seen["decode"] += context.num_prefill_requests == 0
            seen["prompts"] += context.num_prefill_requests > 0
            # As if some were paused: they are the first ones.
            context.paused_request_count = chance.randint(0, context.num_decode_requests)
            seen["paused"] += context.paused_request_count > 0
            compare(context)
            context.paused_request_count = 0
            steps.end([chance.random() < probability for _ in range(steps.active)])

    walk_and_compare()
    assert min(seen[what] for what in ("decode", "prompts", "padded", "paused")) > 20, seen


def compare_after_allocations(compare: Compare) -> None:
    """Call ``compare`` in decode steps of a context whose storage is allocated anew in between."""
    context = testing.build_context(
        testing.EngineSpec(max_requests=8, max_tokens=192, **support.deallocating())
    )
    for _ in range(3):
        decode_step(context=context)
        compare(context)
        support.deallocate(context)
        support.allocate(context)
