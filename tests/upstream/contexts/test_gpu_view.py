"""The storage that the model reads from 0.18 on: one buffer, and tensors that are parts of it."""

from __future__ import annotations

import pytest
import torch

from .. import support
from ..mirror import mirrors

SIZES = {"max_requests": 4, "max_tokens": 16, "max_kv_blocks": 8}


def view_class():  # type: ignore[no-untyped-def]
    return support.module_or_skip("megatron.core.inference.contexts.gpu_view").ContextGPUView


def build(**arguments):  # type: ignore[no-untyped-def]
    return view_class()(**SIZES, device=torch.cuda.current_device(), **arguments)


def parts(view):  # type: ignore[no-untyped-def]
    return {
        name: value
        for name, value in vars(view).items()
        if isinstance(value, torch.Tensor) and name != "_buf"
    }


class TestContextGPUView:
    @mirrors(
        "contexts/test_gpu_view.py",
        "TestContextGPUView.test_layout_with_and_without_mamba",
        digest="4bcfd1cf3604da1f",
    )
    @pytest.mark.parametrize("max_mamba_chunks", [0, 3])
    def test_layout_with_and_without_mamba(self, max_mamba_chunks):
        view = build(max_mamba_chunks=max_mamba_chunks)
        for name in ("token_to_input_ids", "token_to_pos_ids"):
            ids = getattr(view, name)
            assert (ids.shape, ids.dtype, ids.is_contiguous()) == ((16,), torch.int64, True)
            assert ids.data_ptr() % 8 == 0
        for name in ("token_to_request_idx", "token_to_position_in_request"):
            assert getattr(view, name).shape == (16,)
            assert getattr(view, name).dtype is torch.int32
        for name in ("request_query_lengths", "request_kv_length_offsets", "top_k"):
            assert getattr(view, name).shape == (4,)
            assert getattr(view, name).dtype is torch.int32
        for name in ("temperature", "top_p"):
            assert getattr(view, name).shape == (4,)
            assert getattr(view, name).dtype is torch.float32
        assert view.mha_cu_query_seq_lengths.shape == (5,)
        assert view.mha_cu_kv_seq_lengths.shape == (5,)
        assert view.mha_block_table.shape == (4, 8)
        mamba = {name: value for name, value in vars(view).items() if name.startswith("mamba_")}
        assert len(mamba) >= 9
        assert {value is None for value in mamba.values()} == {max_mamba_chunks == 0}

        # No two parts share a byte, and all lie in the buffer, which they fill up to alignment.
        for number, part in enumerate(parts(view).values()):
            part.fill_(number)
        for number, (name, part) in enumerate(parts(view).items()):
            assert (part == number).all(), name
            assert part.untyped_storage().data_ptr() == view._buf.untyped_storage().data_ptr()
        used = sum(part.nbytes for part in parts(view).values())
        assert 0 <= view._buf.nbytes - used < 16

    @mirrors(
        "contexts/test_gpu_view.py",
        "TestContextGPUView.test_mamba_decode_indices_dtype",
        digest="6104ad74cbc10e3b",
    )
    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
    def test_mamba_decode_indices_dtype(self, dtype):
        support.skip_without_argument(view_class(), "mamba_decode_indices_dtype")
        view = build(max_mamba_chunks=3, mamba_decode_indices_dtype=dtype)
        assert view.mamba_batch_indices_decode.dtype is dtype
        assert view.mamba_batch_indices_decode.shape == (4,)
        other = build(max_mamba_chunks=3)
        for name, part in parts(view).items():
            if name != "mamba_batch_indices_decode":
                assert part.dtype is getattr(other, name).dtype
                assert part.shape == getattr(other, name).shape
