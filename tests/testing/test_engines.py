from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from megatron_patch import testing
from megatron_patch.testing.engines import NumberTokenizer

pytestmark = pytest.mark.usefixtures("device")


def test_context_is_as_the_spec_says() -> None:
    context = testing.build_context(
        testing.EngineSpec(max_requests=12, max_tokens=192, block_size_tokens=32)
    )

    assert type(context) is testing.context_class()
    assert (context.max_requests, context.max_tokens) == (12, 192)
    assert context.max_sequence_length == 128
    # Layers, blocks, tokens in a block, heads and dimensions per head; key and value.
    cache = context.memory_buffer
    assert cache.shape[:2] == (2, 2)
    assert cache.shape[3:] == (32, 4, 16)
    assert cache.shape[2] == 12 * 4 + 1
    assert cache.dtype == torch.float32


def test_options_go_to_the_context() -> None:
    option = "tensor_model_parallel_size"
    try:
        context = testing.build_context(testing.EngineSpec(options={option: 2}))
    except testing.UnsupportedError:
        context = testing.build_context(testing.EngineSpec(options={"logging_step_interval": 7}))
        assert context.config.logging_step_interval == 7
    else:
        assert context.memory_buffer.shape[-2] == 2  # of four heads


def test_many_contexts() -> None:
    for _ in range(100):
        testing.build_context(testing.EngineSpec())
    gc.collect()


def test_engine_is_megatrons_own() -> None:
    from megatron.core.inference.engines.dynamic_engine import DynamicInferenceEngine
    from megatron.core.models.gpt.gpt_model import GPTModel

    engine = testing.build_engine(testing.EngineSpec(dtype="bfloat16"))

    assert type(engine) is DynamicInferenceEngine
    assert type(engine.context) is testing.context_class()
    assert type(engine.controller.inference_wrapped_model.model) is GPTModel
    assert engine.context.memory_buffer.dtype == torch.bfloat16
    assert not engine.has_unfinished_requests()


def test_suspend_and_resume_or_the_error_says_that_there_is_no_such_thing() -> None:
    engine = testing.build_engine(testing.EngineSpec())
    assert not testing.is_suspended(engine)
    if not hasattr(engine, "suspend"):
        for function in (testing.suspend, testing.resume):
            with pytest.raises(testing.UnsupportedError, match=r"Megatron-Core .* has no"):
                function(engine)
        return
    testing.suspend(engine)
    assert testing.is_suspended(engine)
    testing.resume(engine)
    assert not testing.is_suspended(engine)


def test_prompts_may_be_text(device: Any) -> None:
    tokenizer = NumberTokenizer(128)
    assert tokenizer.tokenize("1 20 3") == [1, 20, 3]
    assert tokenizer.detokenize([1, 20, 3]) == "1 20 3"
