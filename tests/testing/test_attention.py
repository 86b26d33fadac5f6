"""The attention functions against one that loops over sequences, queries and heads."""

from __future__ import annotations

import itertools
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_patch.testing.attention import flash_attn_varlen_func, flash_attn_with_kvcache
from megatron_patch.testing.rotary import apply_rotary_emb

HEADS, KV_HEADS, HEAD_DIM, BLOCK = 4, 2, 8, 4

pytestmark = pytest.mark.usefixtures("device")


def naive(*tensors: Tensor, **options: Any) -> Tensor:
    """One sequence: (queries, heads, dim) against (keys, kv_heads, dim), in float64."""
    return naive_with_sums(*tensors, **options)[0]


def naive_with_sums(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float = HEAD_DIM**-0.5,
    causal: bool = True,
    window: tuple[int, int] = (-1, -1),
) -> tuple[Tensor, Tensor]:
    """As :func:`naive`, and (heads, queries), the log-sum-exp of the scores of each row."""
    out = torch.zeros_like(q)
    sums = torch.full((q.shape[1], q.shape[0]), torch.inf, device=q.device)
    for row in range(q.shape[0]):
        own_key = k.shape[0] - q.shape[0] + row
        keys = [
            key
            for key in range(k.shape[0])
            if not (causal and key > own_key)
            and not (window[0] >= 0 and key < own_key - window[0])
            and not (window[1] >= 0 and key > own_key + window[1])
        ]
        for head in range(q.shape[1] if keys else 0):
            kv_head = head * k.shape[1] // q.shape[1]
            exponentials = (k[keys, kv_head].double() @ q[row, head].double() * scale).exp()
            sums[head, row] = exponentials.sum().log()
            weights = exponentials / exponentials.sum()
            out[row, head] = (weights @ v[keys, kv_head].double()).to(q.dtype)
    return out, sums


def cumulative(lengths: list[int], device: Any) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def paged(sequences: list[Tensor], width: int, device: Any) -> tuple[Tensor, Tensor]:
    """A cache with the sequences in shuffled blocks, NaN wherever nothing is, and its table."""
    needed = [-(-len(sequence) // BLOCK) for sequence in sequences]
    total = sum(needed) + 3
    cache = torch.full((total, BLOCK, KV_HEADS, HEAD_DIM), torch.nan, device=device)
    cache = cache.to(sequences[0].dtype)
    free = torch.randperm(total).tolist()
    table = torch.full((len(sequences), width), -1, dtype=torch.int32, device=device)
    for row, sequence in enumerate(sequences):
        for column in range(needed[row]):
            block = free.pop()
            part = sequence[column * BLOCK : (column + 1) * BLOCK]
            cache[block, : len(part)] = part
            table[row, column] = block
    return cache, table


def random_sequences(
    lengths: list[int], heads: int, device: Any, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    return [torch.randn(n, heads, HEAD_DIM, device=device).to(dtype) for n in lengths]


LENGTHS = st.lists(
    st.integers(0, 6).flatmap(lambda q: st.tuples(st.just(q), st.integers(q, 11))),
    min_size=1,
    max_size=5,
)


@given(
    lengths=LENGTHS,
    padding=st.integers(0, 3),
    causal=st.booleans(),
    window=st.sampled_from([(-1, -1), (2, -1), (3, 0)]),
    scale=st.sampled_from([None, 0.1]),
    use_blocks=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_varlen_equals_naive(
    device: Any,
    lengths: list[tuple[int, int]],
    padding: int,
    causal: bool,
    window: tuple[int, int],
    scale: float | None,
    use_blocks: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    q_lengths, k_lengths = [q for q, _ in lengths], [k for _, k in lengths]
    queries = random_sequences(q_lengths, HEADS, device)
    keys = random_sequences(k_lengths, KV_HEADS, device)
    values = random_sequences(k_lengths, KV_HEADS, device)
    q = torch.cat([*queries, *random_sequences([padding], HEADS, device)])
    block_table = None
    if use_blocks:
        state = torch.get_rng_state()
        k, block_table = paged(keys, 4, device)
        torch.set_rng_state(state)  # the same shuffle again
        v, _ = paged(values, 4, device)
    else:
        k, v = torch.cat(keys), torch.cat(values)
        if not k.shape[0]:
            k = v = torch.zeros(1, KV_HEADS, HEAD_DIM, device=device)

    arguments: dict[str, Any] = {
        "cu_seqlens_q": cumulative(q_lengths, device),
        "cu_seqlens_k": cumulative(k_lengths, device),
        "max_seqlen_q": max(*q_lengths, 2),  # 1 has a test of its own
        "max_seqlen_k": max(*k_lengths, 1),
        "softmax_scale": scale,
        "causal": causal,
        "window_size": window,
        "block_table": block_table,
    }
    out = flash_attn_varlen_func(q, k, v, **arguments)
    again, sums, none = flash_attn_varlen_func(q, k, v, **arguments, return_attn_probs=True)

    parts = zip(queries, keys, values, strict=True)
    known = {"causal": causal, "window": window, "scale": scale or HEAD_DIM**-0.5}
    expected = [naive_with_sums(*part, **known) for part in parts]
    nothing = torch.zeros(padding, HEADS, HEAD_DIM, device=device)
    torch.testing.assert_close(out, torch.cat([*(part for part, _ in expected), nothing]))
    assert again.equal(out)
    padded = torch.full((HEADS, padding), torch.inf, device=device)
    torch.testing.assert_close(sums, torch.cat([*(part for _, part in expected), padded], dim=1))
    assert none.numel() == 0


@given(
    lengths=st.lists(st.integers(0, 14), min_size=1, max_size=5),
    tokens=st.integers(1, 3),
    window=st.sampled_from([(-1, -1), (2, -1), (3, 0)]),
    use_blocks=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_kvcache_equals_naive(
    device: Any,
    lengths: list[int],
    tokens: int,
    window: tuple[int, int],
    use_blocks: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    lengths = [n if n >= tokens else 0 for n in lengths]  # 0: a padded row
    q = torch.randn(len(lengths), tokens, HEADS, HEAD_DIM, device=device)
    keys = random_sequences(lengths, KV_HEADS, device)
    values = random_sequences(lengths, KV_HEADS, device)
    table = None
    if use_blocks:
        state = torch.get_rng_state()
        k_cache, table = paged(keys, 5, device)
        torch.set_rng_state(state)
        v_cache, _ = paged(values, 5, device)
    else:
        shape = (len(lengths), 16, KV_HEADS, HEAD_DIM)
        k_cache = torch.full(shape, torch.nan, device=device)
        v_cache = torch.full(shape, torch.nan, device=device)
        for row, length in enumerate(lengths):
            k_cache[row, :length], v_cache[row, :length] = keys[row], values[row]

    arguments: dict[str, Any] = {
        "cache_seqlens": torch.tensor(lengths, dtype=torch.int32, device=device),
        "block_table": table,
        "causal": True,
        "window_size": window,
    }
    out = flash_attn_with_kvcache(q, k_cache, v_cache, **arguments)
    again, sums = flash_attn_with_kvcache(q, k_cache, v_cache, **arguments, return_softmax_lse=True)

    rows = [naive_with_sums(*row, window=window) for row in zip(q, keys, values, strict=True)]
    torch.testing.assert_close(out, torch.stack([row for row, _ in rows]))
    assert again.equal(out)
    torch.testing.assert_close(sums, torch.stack([row for _, row in rows]))


def turned(x: Tensor, position: int, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """A head (dim,), rotated pair by pair as complex numbers."""
    half = cos.shape[1]
    result = x.clone()
    for pair in range(half):
        one, other = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
        turn = torch.complex(cos[position, pair], sin[position, pair])
        value = torch.complex(x[one], x[other]) * turn
        result[one], result[other] = value.real, value.imag
    return result


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated_dim", [HEAD_DIM, HEAD_DIM // 2])
@pytest.mark.parametrize("tokens", [1, 3])
def test_new_keys_are_rotated_and_appended(
    device: Any, tokens: int, rotated_dim: int, interleaved: bool
) -> None:
    torch.manual_seed(0)
    lengths = [4, 0, 7]
    angles = torch.rand(10, rotated_dim // 2, device=device)
    cos, sin = angles.cos(), angles.sin()
    q = torch.randn(3, tokens, HEADS, HEAD_DIM, device=device)
    k = torch.randn(3, tokens, KV_HEADS, HEAD_DIM, device=device)
    v = torch.randn(3, tokens, KV_HEADS, HEAD_DIM, device=device)
    # One row more than there are sequences, and garbage behind each sequence.
    k_cache = torch.full((4, 12, KV_HEADS, HEAD_DIM), torch.nan, device=device)
    v_cache = torch.full((4, 12, KV_HEADS, HEAD_DIM), torch.nan, device=device)
    for row, length in enumerate(lengths):
        k_cache[row, :length].normal_()
        v_cache[row, :length].normal_()

    def rotated(x: Tensor, length: int) -> Tensor:
        rows = [
            torch.stack([turned(head, length + i, cos, sin, interleaved) for head in heads])
            for i, heads in enumerate(x)
        ]
        return torch.stack(rows)

    keys = [torch.cat([k_cache[i, :n], rotated(k[i], n)]) for i, n in enumerate(lengths)]
    values = [torch.cat([v_cache[i, :n], v[i]]) for i, n in enumerate(lengths)]
    expected = [naive(rotated(q[i], n), keys[i], values[i]) for i, n in enumerate(lengths)]
    out = flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        k,
        v,
        cos,
        sin,
        torch.tensor(lengths, dtype=torch.int32, device=device),
        causal=True,
        rotary_interleaved=interleaved,
    )
    torch.testing.assert_close(out, torch.stack(expected))
    for row, length in enumerate(lengths):
        torch.testing.assert_close(k_cache[row, : length + tokens], keys[row])
        torch.testing.assert_close(v_cache[row, : length + tokens], values[row])
        assert k_cache[row, length + tokens :].isnan().all()
    assert k_cache[3].isnan().all()


def test_without_a_mask_all_queries_are_rotated_alike(device: Any) -> None:
    cos, sin = torch.rand(2, 9, HEAD_DIM // 2, device=device)
    q = torch.randn(1, 2, HEADS, HEAD_DIM, device=device)
    k, v = torch.randn(2, 1, 2, KV_HEADS, HEAD_DIM, device=device)
    caches = torch.zeros(2, 1, 8, KV_HEADS, HEAD_DIM, device=device)
    out = flash_attn_with_kvcache(
        q, *caches, k, v, cos, sin, torch.tensor([3], dtype=torch.int32, device=device)
    )
    queries = torch.stack(
        [torch.stack([turned(head, 3, cos, sin, True) for head in row]) for row in q[0]]
    )
    torch.testing.assert_close(
        out[0], naive(queries, caches[0, 0, :5], caches[1, 0, :5], causal=False)
    )


def test_a_prompt_is_rotated_from_its_beginning(device: Any) -> None:
    cos, sin = torch.rand(2, 5, HEAD_DIM // 2, device=device)
    x = torch.randn(2, 4, HEADS, HEAD_DIM, device=device)
    before = x.clone()
    for interleaved in (False, True):
        found = apply_rotary_emb(x, cos, sin, interleaved)
        for row, position, head in itertools.product(range(2), range(4), range(HEADS)):
            expected = turned(x[row, position, head], position, cos, sin, interleaved)
            torch.testing.assert_close(found[row, position, head], expected)
    assert x.equal(before)


def test_appending_is_refused_where_flash_attn_would_or_where_it_is_not_stood_in(
    device: Any,
) -> None:
    q = torch.zeros(1, 1, HEADS, HEAD_DIM, device=device)
    new = torch.zeros(1, 1, KV_HEADS, HEAD_DIM, device=device)
    cache = torch.zeros(1, 4, KV_HEADS, HEAD_DIM, device=device)
    lengths = torch.tensor([3], dtype=torch.int32, device=device)
    table = torch.zeros(1, 1, dtype=torch.int32, device=device)
    with pytest.raises(NotImplementedError, match="'block_table'"):
        flash_attn_with_kvcache(q, cache, cache, new, new, None, None, lengths, block_table=table)
    with pytest.raises(RuntimeError, match="must be a tensor"):
        flash_attn_with_kvcache(q, cache, cache, new, new)
    with pytest.raises(NotImplementedError, match="'k'"):
        flash_attn_with_kvcache(q, cache, cache, new, cache_seqlens=lengths)
    if device.type == "cpu":
        with pytest.raises(RuntimeError, match="over the cache length"):
            flash_attn_with_kvcache(q, cache, cache, new, new, None, None, lengths + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(device: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    keys = random_sequences([9, 3], KV_HEADS, device, dtype)
    values = random_sequences([9, 3], KV_HEADS, device, dtype)
    queries = random_sequences([5, 3], HEADS, device, dtype)
    cu_q, cu_k = cumulative([5, 3], device), cumulative([9, 3], device)

    out = flash_attn_varlen_func(
        torch.cat(queries), torch.cat(keys), torch.cat(values), cu_q, cu_k, 5, 9, causal=True
    )

    parts = zip(queries, keys, values, strict=True)
    expected = torch.cat([naive(*part) for part in parts])
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)


def test_softmax_scale_and_whole_cache_by_default(device: Any) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 1, HEADS, HEAD_DIM, device=device)
    cache = torch.randn(2, 6, KV_HEADS, HEAD_DIM, device=device)

    out = flash_attn_with_kvcache(q, cache, cache, softmax_scale=0.5)

    expected = [naive(row, keys, keys, scale=0.5) for row, keys in zip(q, cache, strict=True)]
    torch.testing.assert_close(out, torch.stack(expected))


def test_no_sequences(device: Any) -> None:
    q = torch.ones(3, HEADS, HEAD_DIM, device=device)
    start = cumulative([], device)

    assert not flash_attn_varlen_func(q, q, q, start, start, 1, 1).any()
    out, sums, _ = flash_attn_varlen_func(q, q, q, start, start, 1, 1, return_attn_probs=True)
    assert not out.any()
    assert sums.shape == (HEADS, 3)
    assert sums.isinf().all()


def call_kvcache(device: Any, **arguments: Any) -> Tensor:
    """Two sequences of three keys each in blocks 0 and 1, unless ``arguments`` say otherwise."""
    cache = torch.zeros(2, BLOCK, HEADS, HEAD_DIM, device=device)
    defaults = {
        "q": torch.zeros(2, 1, HEADS, HEAD_DIM, device=device),
        "k_cache": cache,
        "v_cache": cache,
        "cache_seqlens": torch.tensor([3, 3], dtype=torch.int32, device=device),
        "block_table": torch.tensor([[0], [1]], dtype=torch.int32, device=device),
    }
    return flash_attn_with_kvcache(**{**defaults, **arguments})


def test_refuses_what_it_would_ignore(device: Any) -> None:
    new_key = torch.zeros(2, 1, HEADS, HEAD_DIM, device=device)
    with pytest.raises(NotImplementedError, match="'k' is not stood in for"):
        call_kvcache(device, k=new_key)
    with pytest.raises(NotImplementedError, match="'softcap'"):
        call_kvcache(device, softcap=30.0)
    start = cumulative([2], device)
    q = torch.zeros(2, HEADS, HEAD_DIM, device=device)
    with pytest.raises(NotImplementedError, match="'dropout_p'"):
        flash_attn_varlen_func(q, q, q, start, start, 2, 2, dropout_p=0.1)


@pytest.mark.parametrize("name", ["cache_seqlens", "block_table"])
def test_batch_sizes_must_agree(device: Any, name: str) -> None:
    wrong = {
        "cache_seqlens": torch.tensor([3], dtype=torch.int32, device=device),
        "block_table": torch.tensor([[0]], dtype=torch.int32, device=device),
    }
    with pytest.raises(RuntimeError, match=f"{name} must have shape"):
        call_kvcache(device, **{name: wrong[name]})


def test_a_longest_query_of_one_is_one_token_for_each_sequence_with_grouped_heads(
    device: Any,
) -> None:
    q, kv = torch.randn(5, 4, 8, device=device), torch.randn(5, 2, 8, device=device)
    lengths = torch.tensor([0, 1, 2], dtype=torch.int32, device=device)
    assert not flash_attn_varlen_func(q, kv, kv, lengths, lengths, 2, 2)[2:].any()
    with pytest.raises(RuntimeError, match="q must have shape"):
        flash_attn_varlen_func(q, kv, kv, lengths, lengths, 1, 1)
    same = kv.repeat_interleave(2, dim=1)
    assert not flash_attn_varlen_func(q, same, same, lengths, lengths, 1, 1)[2:].any()


@pytest.mark.parametrize("block", [-1, 2])
def test_read_outside_the_cache_is_an_error_on_a_cpu(device: Any, block: int) -> None:
    if device.type != "cpu":
        pytest.skip("a CUDA device would have to be waited for")
    table = torch.tensor([[0], [block]], dtype=torch.int32)
    with pytest.raises(RuntimeError, match=rf"block_table\[1, 0\] is {block}"):
        call_kvcache(device, block_table=table)
    unused = torch.tensor([3, 0], dtype=torch.int32)
    call_kvcache(device, block_table=table, cache_seqlens=unused)


def test_length_over_its_limit_is_an_error_on_a_cpu(device: Any) -> None:
    if device.type != "cpu":
        pytest.skip("a CUDA device would have to be waited for")
    with pytest.raises(RuntimeError, match="a length of 5 is over the block table's width"):
        call_kvcache(device, cache_seqlens=torch.tensor([3, 5], dtype=torch.int32))
    start = cumulative([3], device)
    q = torch.zeros(3, HEADS, HEAD_DIM)
    with pytest.raises(RuntimeError, match="a length of 3 is over max_seqlen_q, 2"):
        flash_attn_varlen_func(q, q, q, start, start, 2, 3)


@pytest.mark.gpu
def test_both_functions_can_be_captured_in_a_cuda_graph(cuda_device: Any) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([5, 2, 0], dtype=torch.int32, device=cuda_device)
    cache = torch.randn(6, BLOCK, KV_HEADS, HEAD_DIM, device=cuda_device)
    table = torch.tensor([[4, 1], [2, -1], [-1, -1]], dtype=torch.int32, device=cuda_device)
    q = torch.randn(3, 1, HEADS, HEAD_DIM, device=cuda_device)
    cu_q = torch.tensor([0, 2, 3, 3], dtype=torch.int32, device=cuda_device)
    cu_k = torch.tensor([0, 5, 7, 7], dtype=torch.int32, device=cuda_device)

    def run() -> tuple[Tensor, Tensor]:
        decoded = flash_attn_with_kvcache(
            q, cache, cache, cache_seqlens=lengths, block_table=table, causal=True
        )
        packed = flash_attn_varlen_func(
            q[:, 0], cache, cache, cu_q, cu_k, 3, 8, causal=True, block_table=table
        )
        return decoded, packed

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    lengths.copy_(torch.tensor([6, 3, 1]))
    table.copy_(torch.tensor([[0, 3], [5, -1], [2, -1]]))
    cu_k.copy_(torch.tensor([0, 6, 9, 10]))
    q.normal_()
    graph.replay()

    for replayed, eager in zip(captured, run(), strict=True):
        torch.testing.assert_close(replayed, eager)
