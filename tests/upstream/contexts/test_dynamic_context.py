"""Input and position ids: storage, views, reset, transfer, and what is added to them."""

from __future__ import annotations

import inspect

import pytest
import torch

from megatron_patch import testing

from .. import support
from ..mirror import mirrors

NAMES = ("token_to_input_ids", "token_to_pos_ids")


def fill(context, name, values):  # type: ignore[no-untyped-def]
    tensor = getattr(support.storage(context), name)
    tensor[: len(values)] = torch.tensor(values, device=tensor.device)


def assert_aliases(context, views, count):  # type: ignore[no-untyped-def]
    """The views are the first `count` ids of the storage, not copies of them."""
    for view, name in zip(views, NAMES, strict=True):
        base = getattr(support.storage(context), name)
        assert view.shape == (1, count)
        assert view.dtype is torch.int64
        assert view.data_ptr() == base.data_ptr()
        base[count - 1] = 4321
        assert view[0, -1] == 4321
        view[0, 0] = 1234
        assert base[0] == 1234


class TestDynamicContext:
    @mirrors(
        "contexts/test_dynamic_context.py",
        "TestDynamicContext.test_current_input_and_position_ids_view_cache",
        digest="6b6d294e393ce995",
    )
    def test_current_input_and_position_ids_view_cache(self):
        context = testing.build_context(testing.EngineSpec(**support.deallocating()))
        context.padded_active_token_count = 64
        views = context.current_input_and_position_ids()
        again = context.current_input_and_position_ids()
        assert again[0] is views[0]
        assert again[1] is views[1]
        assert type(context._input_position_views) is dict
        assert list(context._input_position_views) == [64]
        assert_aliases(context, views, 64)

        fill(context, "token_to_input_ids", range(64))
        fill(context, "token_to_pos_ids", range(100, 164))
        again = context.current_input_and_position_ids()
        assert again[0] is views[0]
        assert again[1] is views[1]
        assert again[0].tolist() == [list(range(64))]
        assert again[1].tolist() == [list(range(100, 164))]

        # Each token count has views of its own, of the same storage.
        fewer = context.current_input_and_position_ids(num_warmup_tokens=8)
        assert sorted(context._input_position_views) == [8, 64]
        assert fewer[0].tolist() == [list(range(8))]
        assert fewer[1].tolist() == [list(range(100, 108))]
        assert_aliases(context, fewer, 8)
        context.padded_active_token_count = 8
        assert context.current_input_and_position_ids()[0] is fewer[0]
        assert context.current_input_and_position_ids(num_warmup_tokens=64)[0] is views[0]

        # Where suspension replaces the storage, no view of the old one comes back.
        support.deallocate(context)
        support.allocate(context)
        context.padded_active_token_count = 64
        fresh = context.current_input_and_position_ids()
        assert_aliases(context, fresh, 64)
        replaced = hasattr(context, "is_tensor_state_allocated")
        assert (fresh[0] is not views[0]) is replaced
        assert (fresh[1] is not views[1]) is replaced
        assert sorted(context._input_position_views) == ([64] if replaced else [8, 64])

    @mirrors(
        "contexts/test_dynamic_context.py",
        "TestDynamicContext.test_initialize_attention_state_bookkeeping_transfer_event",
        digest="7939707f35865e5d",
    )
    @pytest.mark.parametrize(
        ("transfer", "record", "expected"),
        [(False, False, None), (True, False, None), (True, True, "event")],
    )
    def test_initialize_attention_state_bookkeeping_transfer_event(
        self, transfer, record, expected, mocker
    ):
        context = testing.build_context(testing.EngineSpec())
        support.skip_without_argument(
            context.initialize_attention_state, "record_bookkeeping_done_event"
        )
        done = mocker.patch.object(
            context,
            "transfer_bookkeeping_to_gpu",
            side_effect=lambda *, record_done_event=False: "event" if record_done_event else None,
        )
        event = context.initialize_attention_state(
            transfer_bookkeeping_to_gpu=transfer, record_bookkeeping_done_event=record
        )
        assert event == expected
        calls = [mocker.call(record_done_event=record)] if transfer else []
        assert done.call_args_list == calls

    @mirrors(
        "contexts/test_dynamic_context.py",
        "TestDynamicContext.test_transfer_bookkeeping_to_gpu_can_skip_input_token_ids",
        digest="7e786de33cf2f03f",
    )
    def test_transfer_bookkeeping_to_gpu_can_skip_input_token_ids(self):
        context = testing.build_context(testing.EngineSpec())
        support.skip_without(context, "transfer_bookkeeping_to_gpu")
        support.skip_without_argument(context.transfer_bookkeeping_to_gpu, "skip_token_input_ids")
        context.total_request_count = context.padded_active_request_count = 2
        context.padded_active_token_count = 4
        views = context.current_input_and_position_ids()
        context.token_to_input_ids[:4] = torch.tensor([5, 6, 7, 8])
        context.token_to_pos_ids[:4] = torch.tensor([30, 31, 32, 33])
        fill(context, "token_to_input_ids", [61, 62, 63, 64])

        event = context.transfer_bookkeeping_to_gpu(
            skip_token_input_ids=True, record_done_event=True
        )
        event.synchronize()
        assert views[0].tolist() == [[61, 62, 63, 64]]
        assert views[1].tolist() == [[30, 31, 32, 33]]

        assert context.transfer_bookkeeping_to_gpu() is None
        assert views[0].tolist() == [[5, 6, 7, 8]]
        assert context.current_input_and_position_ids()[0] is views[0]

    @mirrors(
        "contexts/test_dynamic_context.py",
        "TestDynamicContext.test_reset",
        digest="b3cda945bdd1c741",
    )
    @pytest.mark.parametrize("is_hybrid_model", [False, True])
    def test_reset(self, is_hybrid_model):
        options = support.hybrid() if is_hybrid_model else {}
        context = testing.build_context(testing.EngineSpec(num_layers=4, options=options))
        blocks = support.free_blocks(context)
        addresses = [getattr(context, name).data_ptr() for name in NAMES]
        support.add(context, 7, range(3, 40))
        counts = [
            "total_request_count",
            "active_token_count",
            "paused_request_count",
            "padded_active_token_count",
            "padded_active_request_count",
        ]
        if "preserve_counters" in inspect.signature(context.reset).parameters:
            counts += [
                "step_count",
                "prefix_cache_lru_clock",
                "lifetime_prefill_token_count",
                "async_sched_step_count",
                "async_sched_compaction_step_count",
            ]
        tensors = {
            "request_ids": -1,
            "request_query_lengths": 0,
            "request_output_lengths": 0,
            "request_kv_length_offsets": 0,
            "request_kv_block_counts": 0,
            "request_last_kv_block_id": -1,
            "request_last_kv_block_offset": 0,
            "request_to_kv_block_ids": -1,
            "token_to_input_ids": 0,
            "token_to_pos_ids": 0,
            "token_to_request_idx": -1,
            "token_to_position_in_request": 0,
            "token_to_block_idx": -1,
            "token_to_local_position_within_kv_block": 0,
        }
        for offset, name in enumerate(counts):
            assert hasattr(context, name)
            setattr(context, name, 10 + offset)
        context.paused_tokens = torch.tensor([1, 2, 3])
        for name in tensors:
            support.tensor(context, name).fill_(1)

        context.reset()

        assert {name: getattr(context, name) for name in counts} == dict.fromkeys(counts, 0)
        assert context.paused_tokens is None
        for name, value in tensors.items():
            assert (support.tensor(context, name) == value).all(), name
        assert support.free_blocks(context) == blocks == support.all_blocks(context) - 1
        if is_hybrid_model:
            assert (context.mamba_metadata.request_to_mamba_state_idx == -1).all()

        # In place, and what the model would read next shows it.
        assert [getattr(context, name).data_ptr() for name in NAMES] == addresses
        context.padded_active_token_count = 64
        if hasattr(context, "transfer_bookkeeping_to_gpu"):
            context.transfer_bookkeeping_to_gpu()
        for view in context.current_input_and_position_ids():
            assert view.tolist() == [[0] * 64]

    @mirrors(
        "contexts/test_dynamic_context.py",
        "TestDynamicContext.test_calculate_and_store_log_probs",
        digest="7a480dfa44560579",
    )
    @pytest.mark.parametrize("logprobs_mode", ["raw_logprobs", "processed_logprobs"])
    def test_calculate_and_store_log_probs(self, logprobs_mode):
        vocab_size = 50
        processed = logprobs_mode == "processed_logprobs"
        options, arguments = {}, {}
        if processed:
            support.skip_without_argument(support.options_class(), "logprobs_mode")
            from megatron.core.inference.sampling.torch_sampling import TorchSampling

            options = {"logprobs_mode": logprobs_mode}
            arguments = {"sampling": TorchSampling(rng=torch.Generator(), vocab_size=vocab_size)}
        context = testing.build_context(testing.EngineSpec(options=options))
        generator = torch.Generator().manual_seed(0)
        samplings = [
            {"temperature": 1.0, "top_k": 0, "top_p": 0.0},
            {"temperature": 0.5, "top_k": 0, "top_p": 0.0},
            {"temperature": 1.0, "top_k": 8, "top_p": 0.0},
            {"temperature": 1.0, "top_k": 0, "top_p": 0.8},
        ]

        def expected(row, sampling):  # type: ignore[no-untyped-def]
            """Log-probs of one row of logits, from the definition of each sampling parameter."""
            row = row.double()
            if processed:
                row = row / sampling["temperature"]
                if sampling["top_k"]:
                    row[row < row.topk(sampling["top_k"]).values.min()] = -torch.inf
                if sampling["top_p"]:
                    ordered = row.sort(descending=True)
                    before = ordered.values.softmax(0).cumsum(0) - ordered.values.softmax(0)
                    row[ordered.indices[before > sampling["top_p"]]] = -torch.inf
            return row.log_softmax(0)

        def check(lengths, targets, padding=0):  # type: ignore[no-untyped-def]
            """`lengths` and what each row is followed by, `targets`, one entry a request."""
            support.publish(context)
            rows = sum(lengths)
            assert context.active_token_count == rows
            device = support.storage(context).token_to_input_ids.device
            logits = torch.randn(1, rows + padding, vocab_size, generator=generator).to(device)
            new_tokens = torch.tensor([target[-1] for target in targets], device=device)
            result = context.calculate_log_probs(logits, new_tokens, **arguments)
            by_request = result[0] if isinstance(result, tuple) else result
            assert [len(row) for row in by_request] == list(lengths)
            index = 0
            for number, target in enumerate(targets):
                for token, value in zip(target, by_request[number], strict=True):
                    row = expected(logits[0, index], samplings[number])
                    assert value == pytest.approx(float(row[token]), abs=1e-5)
                    if isinstance(result, tuple):
                        assert torch.allclose(result[1][index].double(), row, atol=1e-5)
                    index += 1
            return new_tokens

        prompts = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [7, 1, 8, 2, 8], [1, 6, 1, 8, 0, 3, 3]]
        for number, prompt in enumerate(prompts):
            support.add(context, 1001 + number, prompt, num_tokens=8, sampling=samplings[number])
        # Prefill: each token of a prompt is followed by the next, the last by the new one.
        follow = [[*prompt[1:], 20 + number] for number, prompt in enumerate(prompts)]
        new_tokens = check([len(prompt) for prompt in prompts], follow)

        # Decode: one row a request, and rows of padding that belong to none.
        support.update(context, new_tokens)
        assert context.token_to_input_ids[:3].tolist() == [20, 21, 22]
        assert context.token_to_pos_ids[:3].tolist() == [10, 5, 7]
        new_tokens = check([1, 1, 1], [[30], [31], [32]], padding=3)

        # Both in one step.
        support.update(context, new_tokens)
        prompt = [11, 12, 13, 14]
        support.add(context, 1004, prompt, num_tokens=8, sampling=samplings[3])
        check([1, 1, 1, 4], [[40], [41], [42], [12, 13, 14, 43]])

    @mirrors(
        "contexts/test_dynamic_context.py",
        "TestDynamicContext.test_add_dummy_requests_for_expert_parallel_step_matches_slow_path",
        digest="edacffa66c97a90e",
    )
    @pytest.mark.parametrize("is_hybrid_model", [False, True])
    @pytest.mark.parametrize("num_cuda_graphs", [1, 16])
    @pytest.mark.parametrize("num_speculative_tokens", [0, 3])
    def test_add_dummy_requests_for_expert_parallel_step_matches_slow_path(
        self, is_hybrid_model, num_cuda_graphs, num_speculative_tokens
    ):
        name = "add_dummy_requests_for_expert_parallel_step"
        support.skip_without(testing.context_class(), name)
        spec = testing.EngineSpec(
            num_layers=4,
            num_cuda_graphs=num_cuda_graphs,
            num_speculative_tokens=num_speculative_tokens,
            options=support.hybrid() if is_hybrid_model else {},
        )
        context = testing.build_context(spec)
        dimensions = min(
            d for d in context.cuda_graph_batch_dimensions_list if d.prefill_req_count == 0
        )
        requests, tokens = dimensions.decode_req_count, dimensions.token_count
        assert tokens == requests * (num_speculative_tokens + 1)

        def state():  # type: ignore[no-untyped-def]
            return {
                "counts": (
                    context.total_request_count,
                    context.active_token_count,
                    context.num_prefill_requests,
                ),
                "lengths": context.request_query_lengths[:requests].tolist(),
                "offsets": context.request_kv_length_offsets[:requests].tolist(),
                "blocks": context.request_to_kv_block_ids[:requests, 0].tolist(),
                "token blocks": context.token_to_block_idx[:tokens].tolist(),
                "token positions": (
                    context.token_to_local_position_within_kv_block[:tokens].tolist()
                ),
                "token requests": (
                    context.token_to_request_idx[:tokens].tolist() if is_hybrid_model else None
                ),
            }

        context.add_dummy_requests_for_cudagraph_capture(dimensions)
        slow = state()
        dummy = support.allocator(context).dummy_block_idx
        assert slow["counts"] == (requests, tokens, 0)
        assert slow["token blocks"] == [dummy] * tokens
        assert slow["token positions"] == list(range(num_speculative_tokens + 1)) * requests
        context.reset()
        assert state() != slow

        fast = getattr(context, name)
        fast(*([dimensions] if inspect.signature(fast).parameters else []))
        assert state() == slow
        if is_hybrid_model:
            slots = context.mamba_metadata.request_to_mamba_state_idx[:requests].tolist()
            assert min(slots) >= 0
            assert len(set(slots)) == requests

    @mirrors(
        "contexts/test_dynamic_context.py",
        "TestDynamicContext.test_chunked_prefill_hidden_state_prevents_token_bloat",
        digest="6732d51a632b39c8",
    )
    def test_chunked_prefill_hidden_state_prevents_token_bloat(self):
        support.skip_without_argument(support.options_class(), "num_speculative_tokens")
        spec = testing.EngineSpec(
            max_tokens=128, num_speculative_tokens=3, enable_chunked_prefill=True
        )
        context = testing.build_context(spec)
        support.add(context, 10, range(10), num_tokens=10)
        chunked = support.request(42, range(100), num_tokens=10)
        context.chunked_prefill_request_id = 42
        context.add_request(chunked, prefill_chunk_length=50)
        assert context.active_token_count == 60

        drafted = torch.tensor([[100, 110], [101, 111], [102, 112]])
        support.update(context, torch.tensor([99, 127]), new_speculative_tokens=drafted)
        # Of the request that is still in prefill nothing counts, and nothing is lost.
        assert context.total_request_count == 1
        assert context.active_token_count == 4
        assert context.token_to_input_ids[:4].tolist() == [99, 100, 101, 102]
        assert context.token_to_pos_ids[:4].tolist() == [10, 11, 12, 13]
        assert context.request_ids[:2].tolist() == [10, 42]

        chunked.finished_chunk_token_count = 50
        if chunked.remaining_prompt_length == 100:
            chunked.remaining_prompt_tokens = chunked.prompt_tokens[50:]
        context.add_request(chunked, prefill_chunk_length=50)
        assert context.total_request_count == 2
        assert context.active_token_count == 54
        assert context.token_to_input_ids[4:54].tolist() == list(range(50, 100))
        assert context.token_to_pos_ids[4:54].tolist() == list(range(50, 100))
