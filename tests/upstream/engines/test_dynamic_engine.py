"""Suspension and resumption of the engine in the middle of its requests."""

from __future__ import annotations

import gc
import inspect
import weakref

import pytest
import torch

from megatron_patch import testing
from megatron_patch.testing.releases import engine_class, parameters_of, release

from .. import support
from ..mirror import mirrors

REQUESTS = (
    testing.Request(prompt=(5, 6, 7, 8), num_tokens=12),
    testing.Request(prompt=tuple(range(1, 20)), num_tokens=8, arrival_step=2),
)


def mode_fields(mode):  # type: ignore[no-untyped-def]
    """Fields of the spec for what a suspended engine does with its storage; skips without."""
    support.skip_without(engine_class(), "suspend")
    if "kv_cache_management_mode" in parameters_of(support.options_class()):
        return {"kv_cache_management_mode": mode}
    if mode != "recompute":
        pytest.skip(f"{release()} has no kv_cache_management_mode: it always recomputes")
    return {"unified_memory_level": 0}


def at(number, action):  # type: ignore[no-untyped-def]
    """Do `action(engine)` before step `number`."""
    done = []

    def on_step(engine, step):  # type: ignore[no-untyped-def]
        if step == number:
            action(engine)
            done.append(step)

    on_step.done = done  # type: ignore[attr-defined]
    return on_step


@mirrors(
    "engines/test_dynamic_engine.py",
    "test_recompute_suspend_resume_readds_prefix_cached_request_with_fresh_hashes",
    digest="da3505dc7f880173",
)
def test_recompute_suspend_resume_readds_prefix_cached_request_with_fresh_hashes(mocker):
    from megatron.core.inference import inference_request

    record_class = getattr(inference_request, "DynamicInferenceRequestRecord", None)
    if record_class is None or "prefix_caching" not in inspect.getsource(record_class.checkpoint):
        pytest.skip(f"{release()}: the checkpoint of a request forgets enable_prefix_caching")
    fields = {**mode_fields("recompute"), "enable_prefix_caching": True, "block_size_tokens": 4}
    spec = testing.EngineSpec(**fields)
    requests = [testing.Request(prompt=(1, 2, 3, 4, 5, 6), num_tokens=9)]
    through = testing.decode(testing.build_engine(spec), requests)

    def cycle(engine):  # type: ignore[no-untyped-def]
        (request_id,) = engine.requests
        old = engine.get_request(request_id)
        assert len(old.generated_tokens) == 4
        deallocate = mocker.spy(engine.context, "deallocate_inference_state_buffers")
        allocate = mocker.spy(engine.context, "reinitialize_inference_state_buffers")
        readd = mocker.spy(engine, "_add_request")
        testing.suspend(engine)
        new = engine.get_request(request_id)
        prompt = [1, 2, 3, 4, 5, 6, *old.generated_tokens]
        assert new.prompt_tokens.tolist() == prompt
        assert new.remaining_prompt_tokens.tolist() == prompt
        assert (new.enable_prefix_caching, new.block_size_tokens) == (True, 4)
        # Of blocks that the generated tokens have filled as well: 10 tokens, 2 whole blocks.
        hashes = inference_request.compute_block_hashes_batched(new.prompt_tokens, block_size=4)
        assert new.precomputed_block_hashes == hashes
        assert len(hashes) == 2 == len(old.precomputed_block_hashes) + 1
        assert hashes[0] == old.precomputed_block_hashes[0]
        assert (deallocate.call_count, allocate.call_count) == (1, 0)
        testing.resume(engine)
        assert (deallocate.call_count, allocate.call_count) == (1, 1)
        assert [call.args[0] for call in readd.call_args_list] == [new]

    on_step = at(4, cycle)
    decoded = testing.decode(testing.build_engine(spec), requests, on_step=on_step)
    assert on_step.done == [4]
    assert decoded.tokens == through.tokens


class TestDynamicInferenceEngine:
    @mirrors(
        "engines/test_dynamic_engine.py",
        "TestDynamicInferenceEngine.test_suspend_resume_cycle",
        digest="d1c12f150f17ad3a",
    )
    @pytest.mark.parametrize("static_kv_memory_pointers", [True, False])
    @pytest.mark.parametrize("kv_cache_management_mode", ["persist", "offload", "recompute"])
    def test_suspend_resume_cycle(self, kv_cache_management_mode, static_kv_memory_pointers):
        mode = kv_cache_management_mode
        fields = mode_fields(mode)
        if static_kv_memory_pointers:
            support.skip_without_argument(support.options_class(), "static_kv_memory_pointers")
            fields["options"] = {"static_kv_memory_pointers": True}
        spec = testing.EngineSpec(**fields)
        if static_kv_memory_pointers and mode != "persist":
            # The package torch_memory_saver could keep the addresses; without, it is refused.
            with pytest.raises(AssertionError, match="Static KV memory pointers"):
                testing.build_context(spec)
            return
        through = testing.decode(testing.build_engine(spec), REQUESTS)

        def cycle(engine):  # type: ignore[no-untyped-def]
            context = engine.context
            assert context.is_tensor_state_allocated
            # By their bits: what no token was written to yet may be anything, also NaN.
            contents = context.memory_buffer.view(torch.int32).clone()
            assert contents.any()
            address = context.memory_buffer.data_ptr()
            buffer = weakref.ref(context.memory_buffer)
            ids = weakref.ref(context.token_to_input_ids)
            size = context.memory_buffer.untyped_storage().nbytes()

            testing.suspend(engine)
            assert testing.is_suspended(engine)
            assert not context.is_tensor_state_allocated
            gc.collect()
            if mode == "recompute":
                assert buffer() is None
                assert ids() is None
                assert not hasattr(context, "token_to_input_ids")
            else:
                kept = size if mode == "persist" else 0
                assert context.memory_buffer.untyped_storage().nbytes() == kept
                assert context.token_to_input_ids is ids()

            testing.resume(engine)
            assert not testing.is_suspended(engine)
            assert context.is_tensor_state_allocated
            assert context.memory_buffer.untyped_storage().nbytes() == size
            if mode != "recompute":
                assert context.memory_buffer is buffer()
                assert context.memory_buffer.view(torch.int32).equal(contents)
            if mode == "persist":
                assert context.memory_buffer.data_ptr() == address
            views = context.current_input_and_position_ids(num_warmup_tokens=64)
            storage = support.storage(context)
            assert views[0].data_ptr() == storage.token_to_input_ids.data_ptr()
            assert views[1].data_ptr() == storage.token_to_pos_ids.data_ptr()

        on_step = at(5, cycle)
        decoded = testing.decode(testing.build_engine(spec), REQUESTS, on_step=on_step)
        assert on_step.done == [5]
        assert decoded.tokens == through.tokens

    @mirrors(
        "engines/test_dynamic_engine.py",
        "TestDynamicInferenceEngine.test_speculative_decoding_suspend_resume",
        digest="1e192dd33d0ce984",
    )
    @pytest.mark.parametrize("kv_cache_management_mode", ["recompute", "persist"])
    def test_speculative_decoding_suspend_resume(self, kv_cache_management_mode):
        support.skip_without_argument(support.options_class(), "num_speculative_tokens")
        spec = testing.EngineSpec(
            num_speculative_tokens=2,
            materialize_only_last_token_logits=False,
            **mode_fields(kv_cache_management_mode),
        )
        engine = testing.build_engine(spec)

        def cycle(engine):  # type: ignore[no-untyped-def]
            assert engine.has_unfinished_requests()
            testing.suspend(engine)
            testing.resume(engine)

        on_step = at(4, cycle)
        decoded = testing.decode(engine, REQUESTS, on_step=on_step)
        assert on_step.done == [4]
        assert decoded.tokens == testing.reference_decode(testing.build_model(spec), REQUESTS)
        assert engine.context.active_token_count == 0
        assert engine.context.total_request_count == 0
