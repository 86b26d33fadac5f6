"""Prompts that are suspended between their chunks, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_patch import testing
from megatron_patch.backports.upstream.resumed_prompt_chunks import RESUMED_PROMPT_CHUNKS
from megatron_patch.testing.releases import context_parameters, engine_class

from ..conftest import RELEASE
from .checks import assert_state_of_record, needs, proof

pytestmark = pytest.mark.usefixtures("device")

LONG = testing.Request(tuple(i * i % 127 for i in range(110)), 6)
VERY_LONG = testing.Request(tuple(i * 7 % 127 for i in range(180)), 6)
SHORT = testing.Request((5, 6, 7), 9)
LATE = testing.Request((9, 10), 4, arrival_step=2)
PATCHED = RELEASE.release[:2] == (0, 16)
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} has upstream's change, or none")


def build(**fields: Any) -> Any:
    needs(hasattr(engine_class(), "suspend"), "suspend()")
    frees = "kv_cache_management_mode" in context_parameters()
    return testing.build_engine(
        testing.EngineSpec(
            kv_cache_management_mode="recompute" if frees else None,
            enable_chunked_prefill=True,
            max_sequence_length=192,
            **fields,
        )
    )


def decode(engine: Any, requests: list[testing.Request], suspend_at: Any, **sampling: Any) -> Any:
    def on_step(engine: Any, step: int) -> None:
        if step in suspend_at:
            testing.suspend(engine)
            testing.resume(engine)

    return testing.decode(
        engine, requests, on_step=on_step, capture_logits=False, sampling=sampling
    )


def reference(requests: list[testing.Request]) -> Any:
    spec = testing.EngineSpec(max_sequence_length=192)
    return testing.reference_decode(testing.build_model(spec), requests)


def test_state():
    engine_class()
    assert_state_of_record(RESUMED_PROMPT_CHUNKS)


@proof
@pytest.mark.parametrize("suspend_at", [(1,), (2,), (1, 2), (1, 2, 3), (3,)], ids=str)
@pytest.mark.parametrize("before", [[], [SHORT]], ids=["alone", "behind another"])
def test_the_prompt_starts_anew(suspend_at, before):
    requests = [*before, LONG]
    assert decode(build(), requests, suspend_at).tokens == reference(requests)


@proof
@pytest.mark.parametrize("suspend_at", [(1,), (2,), (1, 3)], ids=str)
def test_a_prompt_of_many_chunks_and_who_waits_behind_it(suspend_at):
    requests = [SHORT, VERY_LONG, LONG, LATE]
    assert decode(build(), requests, suspend_at).tokens == reference(requests)


@only_patched
@pytest.mark.parametrize("only_last", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_there_are_as_many_log_probs_as_without_a_suspension(only_last, skip):
    if only_last and not skip:
        pytest.skip("the log probs of a prompt need all logits")
    sampling = {"return_log_probs": True, "skip_prompt_log_probs": skip}
    counts = []
    for suspend_at in ((), (1,)):
        engine = build(materialize_only_last_token_logits=only_last)
        (record,) = decode(engine, [LONG], suspend_at, **sampling).records
        (part,) = record.requests
        counts.append((len(part.prompt_log_probs), len(part.generated_log_probs)))
    assert counts == [(0 if skip else len(LONG.prompt) - 1, LONG.num_tokens)] * 2


@only_patched
def test_unpatched_the_next_chunk_raises(unpatched):
    with pytest.raises(AssertionError, match="Continuation current_id mismatch"):
        decode(build(), [LONG], (1,))
