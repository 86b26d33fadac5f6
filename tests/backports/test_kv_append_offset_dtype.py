"""Offsets into a large KV cache, on whichever release is installed."""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.kv_append_offset_dtype import KV_APPEND_OFFSET_DTYPE

from ..conftest import RELEASE, expected_state
from ..upstream import support
from .checks import assert_same_outputs, proof, state_of

HAS_VIEW = RELEASE >= Version("0.18")
PATCHED = HAS_VIEW and RELEASE < Version("0.19")

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} has 64 bits for a block")
only_view = pytest.mark.skipif(
    not HAS_VIEW, reason=f"{RELEASE} has no copy of the bookkeeping on the device"
)

#: Blocks of 256 tokens with one head of 128 elements: this one begins at element 2**31.
ELEMENTS, BLOCK = 2**15, 2**16


def test_state():
    testing.context_class()
    expected = State.APPLIED if PATCHED else State.UPSTREAMED
    assert state_of(KV_APPEND_OFFSET_DTYPE) is expected_state(
        expected if HAS_VIEW else State.NOT_APPLICABLE
    )


def blocks_of_tokens(context) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """What the kernel reads the block of each token from."""
    return support.tensor(support.storage(context), "token_to_block_idx")


def offset(context) -> int:  # type: ignore[no-untyped-def]
    """The first element of the block, in the type in which the kernel computes it."""
    return int(blocks_of_tokens(context).fill_(BLOCK)[0] * ELEMENTS)


@proof
def test_the_offset_of_a_block_does_not_overflow():
    assert offset(testing.build_context(testing.EngineSpec())) == 2**31


@only_patched
def test_unpatched_the_offset_of_a_block_overflows(unpatched):
    assert offset(testing.build_context(testing.EngineSpec())) == -(2**31)


def layout(
    owner, buffer: torch.Tensor, *prefixes: str
) -> dict[str, tuple[int, object, torch.Size]]:  # type: ignore[no-untyped-def]
    """Offset, type and shape of each tensor in ``buffer``, by its name without the prefixes."""
    found = {}
    start, end = buffer.data_ptr(), buffer.data_ptr() + buffer.numel()
    for name, value in vars(owner).items():
        inside = isinstance(value, torch.Tensor) and start <= value.data_ptr() < end
        if inside and value is not buffer and value.numel():
            for prefix in prefixes:
                name = name.removeprefix(prefix)
            found[name] = (value.data_ptr() - start, value.dtype, value.shape)
    return found


@only_view
@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("max_sequence_length", [64, 80])  # an even and an odd number of blocks
def test_the_copy_on_the_device_has_the_layout_of_its_source(hybrid, max_sequence_length):
    options = support.hybrid() if hybrid else {}
    spec = testing.EngineSpec(max_sequence_length=max_sequence_length, options=options)
    context = testing.build_context(spec)
    source, view = context._cpu_bookkeeping_buf, context.gpu_view._buf
    assert source.numel() == view.numel()
    fields = layout(context.gpu_view, view)
    assert fields.items() <= layout(context, source, "_staging_", "_cpu_").items()
    assert {"token_to_block_idx", "mha_block_table"} <= fields.keys()
    end = 0
    for begin, dtype, shape in sorted(fields.values(), key=lambda field: field[0]):
        assert begin % dtype.itemsize == 0
        assert end <= begin < end + 8  # no overlap, and no gap but for alignment
        end = begin + shape.numel() * dtype.itemsize
    assert end == view.numel()


@only_view
def test_what_is_transferred_arrives():
    context = testing.build_context(testing.EngineSpec())
    for index in range(3):
        support.add(context, index, range(20 + index))
    support.publish(context)
    names = [name for name in vars(context.gpu_view) if name.startswith("token_to_")]
    assert len(names) == 6
    for name in names:
        count = context.active_token_count
        expected = getattr(context, name)[:count].tolist()
        assert getattr(context.gpu_view, name)[:count].tolist() == expected
        assert any(expected)


REQUESTS = tuple(
    testing.Request(prompt=tuple(range(i, 20 + 5 * i)), num_tokens=4 + i, arrival_step=i)
    for i in range(4)
)


@only_patched
def test_tokens_and_logits_are_unchanged(unpatched):
    without = testing.decode(testing.build_engine(testing.EngineSpec()), REQUESTS)
    megatron_patch.install()
    patched = testing.decode(testing.build_engine(testing.EngineSpec()), REQUESTS)
    assert_same_outputs(patched, without)


def appended(device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # type: ignore[no-untyped-def]
    """Append a token to the block; returns what was given, what is there, and the layer before."""
    shape = (2, 2, BLOCK + 1, 256, 1, 128)  # keys and values of two layers
    free, needed = torch.cuda.mem_get_info(device)[0], 2 * 2 * (BLOCK + 1) * ELEMENTS * 2
    if free < needed + 2**30:
        pytest.skip(f"needs {needed / 2**30 + 1:.0f} GiB of free memory; {free / 2**30:.0f} are")
    spec = testing.EngineSpec(dtype="bfloat16", block_size_tokens=256, max_sequence_length=256)
    context = testing.build_context(spec)
    context.memory_buffer = torch.zeros(shape, dtype=torch.bfloat16, device=device)
    context.padded_active_token_count = 1
    blocks_of_tokens(context)[0] = BLOCK
    storage = support.storage(context)
    support.tensor(storage, "token_to_local_position_within_kv_block")[0] = 0
    key, value = torch.ones(2, 1, 1, 1, 128, dtype=torch.bfloat16, device=device)
    context.append_key_value_cache(2, key, value)  # the second layer, so that one is in front
    torch.cuda.synchronize()
    return torch.stack((key, value)).flatten(), *(
        context.memory_buffer[:, layer, block, 0].flatten() for layer, block in ((1, BLOCK), (0, 1))
    )


@pytest.mark.gpu
@only_view
def test_a_token_is_appended_to_a_block_beyond_the_range_of_32_bits(cuda_device):
    given, there, in_front = appended(cuda_device)
    assert there.equal(given)
    assert not in_front.any()


@pytest.mark.gpu
@only_patched
def test_unpatched_the_token_is_written_over_another_layer(unpatched, cuda_device):
    given, there, in_front = appended(cuda_device)
    assert in_front.equal(given)
    assert not there.any()
