"""Prompts of one token where several heads of queries share one of keys, on any release."""

from __future__ import annotations

import inspect

import pytest

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.ours.grouped_one_token_prompts import GROUPED_ONE_TOKEN_PROMPTS
from megatron_patch.testing.releases import context_class

from .attending import attention
from .checks import ONE_TOKEN_BATCHES as BATCHES
from .checks import assert_same_outputs, assert_state_of_record, needs, proof

pytestmark = pytest.mark.usefixtures("device")

GROUPED = testing.EngineSpec(num_query_groups=2)
ONE_HEAD = testing.EngineSpec(num_query_groups=1)


def computes_longest_query_on_host() -> bool:
    """Whether the context says how long the longest query is, and no metadata on the GPU does."""
    source = inspect.getsource(context_class().initialize_attention_state)
    return "max_seqlen_q = " in source


def check(spec: testing.EngineSpec, requests: list[testing.Request]) -> None:
    expected = testing.reference_decode(testing.build_model(spec), requests)
    found = testing.decode(testing.build_engine(spec), requests, capture_logits=False)
    assert found.tokens == expected


def test_state():
    context_class()
    assert_state_of_record(GROUPED_ONE_TOKEN_PROMPTS)


@proof
@pytest.mark.parametrize("spec", [GROUPED, ONE_HEAD], ids=["grouped", "one head"])
@pytest.mark.parametrize("name", BATCHES)
def test_they_decode_as_the_model_alone(name, spec):
    # Where it is computed on the GPU, `one-token-prefill` is for it.
    needs(computes_longest_query_on_host(), "a longest query that the context computes")
    check(spec, BATCHES[name])


def longest_queries(
    monkeypatch: pytest.MonkeyPatch, spec: testing.EngineSpec, requests: list[testing.Request]
) -> tuple[list[int], testing.Decoded]:
    """What an engine gives flash-attn as the longest query of each prefill, and what it decodes."""
    found: list[int] = []
    module = attention()
    original = module.flash_attn_varlen_func

    def call(*args, **kwargs):  # type: ignore[no-untyped-def]
        bound = inspect.signature(original).bind(*args, **kwargs)
        found.append(bound.arguments["max_seqlen_q"])
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(module, "flash_attn_varlen_func", call)
        return found, testing.decode(testing.build_engine(spec), requests)


@pytest.mark.parametrize("spec", [testing.EngineSpec(), GROUPED], ids=["heads", "grouped"])
def test_longer_prompts_are_as_before(unpatched, monkeypatch, spec):
    """Where the patch is not needed, the longest query and the results are what they were."""
    requests = [testing.Request(tuple(range(n)), 5, step) for step, n in enumerate((2, 5, 30, 3))]
    lengths, without = longest_queries(monkeypatch, spec, requests)
    monkeypatch.setenv("MEGATRON_PATCH", GROUPED_ONE_TOKEN_PROMPTS.id)
    megatron_patch.install()
    found, patched = longest_queries(monkeypatch, spec, requests)
    megatron_patch.uninstall()
    assert found == lengths
    assert min(found) == 2
    assert_same_outputs(patched, without)
