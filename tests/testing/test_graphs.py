"""CUDA graphs: the same tests for PyTorch's, on a GPU, and for what stands in for them on a CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_patch.testing import attention, graph_counts, graphs

pytestmark = pytest.mark.usefixtures("device")

on_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="of the stand-in, or leaves a GPU with a capture that failed"
)


def capture(function: Callable[[], Any], **arguments: Any) -> tuple[Any, Any]:
    """The graph of ``function``, and what it returned."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **arguments):
        result = function()
    return graph, result


@pytest.fixture
def x(device: Any) -> Tensor:
    return torch.arange(6.0, device=device).reshape(2, 3)


def test_a_replay_reads_new_inputs_and_writes_the_same_memory(x: Tensor) -> None:
    graph, y = capture(lambda: (x * 2 + 1).sum(dim=1))
    address = y.data_ptr()

    for value in (5.0, 7.0):
        x.fill_(value)
        graph.replay()
        assert y.tolist() == [3 * (2 * value + 1)] * 2
    assert y.data_ptr() == address


def test_results_before_a_replay_stay_until_it(x: Tensor) -> None:
    graph, y = capture(lambda: x + 1)
    graph.replay()
    before = y.clone()

    x.fill_(9)

    assert torch.equal(y, before)
    graph.replay()
    assert not y.eq(before).any()


def test_state_advances_with_each_replay(device: Any) -> None:
    """As a KV cache does: a row is written at a position that the graph itself moves on."""
    cache, position = (
        torch.zeros(5, 2, device=device),
        torch.zeros(1, dtype=torch.long, device=device),
    )
    row = torch.ones(1, 2, device=device)

    def append() -> None:
        cache.index_copy_(0, position, row)
        position.add_(1)

    graph, _ = capture(append)
    cache.zero_()
    position.zero_()

    for value in (1.0, 2.0, 3.0):
        row.fill_(value)
        graph.replay()

    assert cache[:, 0].tolist() == [1, 2, 3, 0, 0]
    assert position.item() == 3


def test_views_and_writes_through_views(x: Tensor) -> None:
    def function() -> tuple[Tensor, ...]:
        base = x + 1
        base.view(-1)[1:3].mul_(10)
        column = base.t()[2]
        column += 100
        return base, column, base.unsqueeze(0).expand(4, 2, 3), base.reshape(3, 2)

    graph, results = capture(function)
    x.fill_(1)
    graph.replay()

    expected = torch.tensor([[2.0, 20, 120], [2, 2, 102]], device=x.device)
    base, column, expanded, reshaped = results
    assert torch.equal(base, expected)
    assert torch.equal(column, expected[:, 2])
    assert torch.equal(expanded, expected.expand(4, 2, 3))
    assert torch.equal(reshaped, expected.reshape(3, 2))


def test_arguments_that_change_their_shape(x: Tensor) -> None:
    def function() -> Tensor:
        y = x + 1
        y.t_()
        y.unsqueeze_(0)
        return y.mul_(2).contiguous()

    graph, y = capture(function)
    x.fill_(3)
    graph.replay()
    graph.replay()

    assert y.shape == (1, 3, 2)
    assert y.unique().tolist() == [8]


@on_cpu
def test_a_number_of_python_is_the_same_each_time(x: Tensor) -> None:
    def function() -> Tensor:
        y = torch.tensor([1.0, 2.0, 3.0])
        y.mul_(2)
        return x + y

    graph, z = capture(function)
    x.fill_(1)
    graph.replay()
    graph.replay()

    assert z.tolist() == [[3, 5, 7]] * 2


def test_operators_of_several_results(x: Tensor) -> None:
    def function() -> list[Tensor]:
        values, indices = x.topk(2, dim=1)
        outputs = torch.empty(2, 1, device=x.device)
        torch.sum(x, dim=1, keepdim=True, out=outputs)
        return [values, indices, outputs, *(x * 2).split([1, 2], dim=1)]

    graph, results = capture(function)
    x.copy_(torch.tensor([[9.0, 1, 5], [2, 8, 3]], device=x.device))
    graph.replay()

    expected = [[[9, 5], [8, 3]], [[0, 2], [1, 2]], [[15], [13]], [[18], [4]], [[2, 10], [16, 6]]]
    assert [result.tolist() for result in results] == expected


def test_lists_of_tensors(x: Tensor) -> None:
    y = torch.zeros(3, device=x.device)
    graph, z = capture(lambda: (torch._foreach_add_([x, y], 1), torch.cat([x.flatten(), y]))[1])
    x.zero_()
    y.zero_()

    graph.replay()
    graph.replay()

    assert z.tolist() == [2] * 9


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("replay_mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_in_each_mode_of_autograd(x: Tensor, mode: Any, replay_mode: Any) -> None:
    layer = torch.nn.Linear(3, 4, device=x.device)
    with mode():
        layer(x).relu()  # a GPU's libraries set themselves up in their first call
        graph, y = capture(lambda: layer(x).relu())
    x.fill_(0.5)

    with replay_mode():
        graph.replay()

        assert torch.allclose(y, layer(x).relu())


def test_a_backward_pass_is_captured_too(device: Any) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.GELU(), torch.nn.Linear(4, 2)
    ).to(device)
    x = torch.randn(5, 3, device=device).requires_grad_()
    seed = torch.ones(5, 2, device=device)
    wanted = (x, *layer.parameters())
    torch.autograd.grad(layer(x), wanted, seed)  # a GPU's libraries set themselves up
    forward, y = capture(lambda: layer(x))
    backward, gradients = capture(lambda: torch.autograd.grad(y, wanted, seed))

    for _ in range(2):
        with torch.no_grad():
            x.normal_()
            seed.normal_()
            for parameter in layer.parameters():
                parameter.normal_()
        forward.replay()
        backward.replay()

        expected = layer(x)
        assert torch.equal(y, expected)
        for got, want in zip(gradients, torch.autograd.grad(expected, wanted, seed), strict=True):
            assert torch.equal(got, want)


def test_autograd_does_not_see_a_replay(x: Tensor) -> None:
    """A replay may overwrite what a backward pass has kept, which then uses the new values."""
    graph, y = capture(lambda: x + 1)
    weight = torch.ones(3, device=x.device, requires_grad=True)
    graph.replay()
    product = (y * weight).sum()
    x.fill_(4)
    graph.replay()

    product.backward()

    assert weight.grad is not None
    assert weight.grad.tolist() == [10, 10, 10]


def test_random_numbers_are_drawn_anew(device: Any) -> None:
    graph, y = capture(lambda: torch.rand(8, device=device))

    def draw(times: int) -> list[list[float]]:
        torch.manual_seed(3)
        drawn = []
        for _ in range(times):
            graph.replay()
            drawn.append(y.tolist())
        return drawn

    first = draw(2)
    assert first[0] != first[1]
    assert draw(2) == first


HOST_READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "int": lambda x: int(x[0, 0]),
    "tolist": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 1],
    "where": lambda x: torch.where(x > 1),
    "masked_select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(),
    "repeat_interleave": lambda x: x[0].repeat_interleave(x[1].long()),
    "equal": lambda x: torch.equal(x, x + 0),
    "cpu": lambda x: x.cpu(),
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "synchronize": lambda x: torch.cuda.synchronize(),
}


@on_cpu
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("read", HOST_READS.values(), ids=HOST_READS)
def test_the_host_must_not_wait(x: Tensor, read: Callable[[Tensor], Any], mode: Any) -> None:
    graph = torch.cuda.CUDAGraph()
    with mode(), pytest.raises(RuntimeError), torch.cuda.graph(graph):
        read(x)

    assert not torch.cuda.is_current_stream_capturing()
    with pytest.raises(RuntimeError):
        graph.replay()


@on_cpu
def test_a_swallowed_error_spoils_the_graph(x: Tensor) -> None:
    graph = torch.cuda.CUDAGraph()

    graph.capture_begin()
    with pytest.raises(RuntimeError):
        x.sum().item()
    x.add_(1)
    with pytest.raises(RuntimeError, match="captur"):
        graph.capture_end()

    with pytest.raises(RuntimeError):
        graph.replay()


ALLOWED: dict[str, Callable[[Tensor], Any]] = {
    "index": lambda x: x[torch.zeros(1, dtype=torch.long, device=x.device)],
    "fill a mask": lambda x: x.masked_fill(x > 1, 0),
    "write a number to a mask": lambda x: x.clone().index_put_((x > 1,), torch.zeros(())),
    "repeat_interleave": lambda x: x[0].repeat_interleave(2),
    "where": lambda x: torch.where(x > 1, x, 0),
    "event": lambda x: torch.cuda.Event().record(),
    "a number of the host": lambda x: x + torch.tensor(2.0),
}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("function", ALLOWED.values(), ids=ALLOWED)
def test_what_does_not_wait_is_captured(
    x: Tensor, function: Callable[[Tensor], Any], mode: Any
) -> None:
    with mode():
        graph, _ = capture(lambda: function(x))
        graph.replay()


@on_cpu
def test_one_capture_at_a_time(x: Tensor) -> None:
    inner = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        inner.capture_begin()

    assert not torch.cuda.is_current_stream_capturing()
    graph, y = capture(lambda: x + 1)
    graph.replay()
    assert torch.equal(y, x + 1)


def test_a_graph_is_captured_once(x: Tensor) -> None:
    graph, y = capture(lambda: x + 1)

    with pytest.raises(RuntimeError, match="already owns"), torch.cuda.graph(graph):
        pass

    graph.replay()
    assert torch.equal(y, x + 1)


def test_reset_forgets_the_graph(x: Tensor) -> None:
    graph, _ = capture(lambda: x.add_(1))
    graph.reset()
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        graph.replay()

    with torch.cuda.graph(graph):
        x.mul_(2)

    x.fill_(1)
    graph.replay()
    assert x.unique().tolist() == [2]


def test_nothing_to_replay() -> None:
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        torch.cuda.CUDAGraph().replay()


@on_cpu
def test_an_error_within_a_capture_is_the_one_seen(x: Tensor) -> None:
    graph = torch.cuda.CUDAGraph()

    with pytest.raises(KeyError, match="mine"), torch.cuda.graph(graph):
        raise KeyError("mine")

    assert not torch.cuda.is_current_stream_capturing()


def test_pools() -> None:
    one, other = torch.cuda.graph_pool_handle(), torch.cuda.graph_pool_handle()
    assert one != other
    x = torch.zeros(1, device="cuda")

    assert capture(lambda: x + 1, pool=one)[0].pool() == one
    assert capture(lambda: x + 1)[0].pool() not in (one, other)
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        torch.cuda.CUDAGraph().pool()


def test_who_is_capturing(x: Tensor) -> None:
    seen = {}

    def ask(name: str) -> None:
        seen[name] = torch.cuda.is_current_stream_capturing()

    def elsewhere() -> None:
        thread = threading.Thread(target=ask, args=("another thread",))
        thread.start()
        thread.join()
        ask("within")

    ask("before")
    capture(elsewhere, capture_error_mode="thread_local")
    ask("after")

    assert seen == {"before": False, "another thread": False, "within": True, "after": False}


def test_captures_and_replays_are_counted(x: Tensor) -> None:
    with graph_counts.counted() as count:
        graph, _ = capture(lambda: x + 1)
        graph.replay()
        graph.replay()
    graph.replay()

    assert (count.captures, count.replays) == (1, 2)


@on_cpu
def test_memory_must_stay_where_it_was(x: Tensor) -> None:
    y = torch.ones(1000)
    graph, _ = capture(lambda: x + y.sum())
    size = y.untyped_storage().size()

    y.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        graph.replay()
    y.untyped_storage().resize_(100 * size)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        graph.replay()


@on_cpu
def test_a_replay_within_a_capture_is_part_of_it(x: Tensor) -> None:
    inner, _ = capture(lambda: x.add_(1))
    outer, _ = capture(lambda: (x.mul_(2), inner.replay(), x.mul_(3)))
    x.fill_(1)

    outer.replay()

    assert x.unique().tolist() == [9]


@on_cpu
def test_calls_on_the_host_are_made_in_each_replay(x: Tensor) -> None:
    seen = []

    def call(tensor: Tensor, name: str) -> None:
        seen.append((name, tensor.tolist()))
        tensor.add_(1)

    graph, y = capture(lambda: (graphs.on_host(call, x[0], name="a"), x + 0)[1])
    assert seen == [("a", [0, 1, 2])]
    x.fill_(5)

    graph.replay()

    assert seen[1:] == [("a", [5, 5, 5])]
    assert y.tolist() == [[6] * 3, [5] * 3]


@on_cpu
def test_the_attention_checks_what_each_replay_reads() -> None:
    q, cache = torch.randn(2, 1, 4, 8), torch.randn(3, 16, 4, 8)
    lengths, table = torch.tensor([3, 4], dtype=torch.int32), torch.tensor([[0], [2]])
    graph, out = capture(
        lambda: attention.flash_attn_with_kvcache(
            q, cache, cache, cache_seqlens=lengths, block_table=table, causal=True
        )
    )
    table[1, 0] = 1
    graph.replay()
    expected = attention.flash_attn_with_kvcache(
        q, cache, cache, cache_seqlens=lengths, block_table=table, causal=True
    )
    assert torch.equal(out, expected)

    table[1, 0] = -1
    with pytest.raises(RuntimeError, match="not one of the 3 blocks"):
        graph.replay()
    lengths[1] = 17
    with pytest.raises(RuntimeError, match="over the block table's width"):
        graph.replay()


@on_cpu
def test_kernels_of_triton_are_captured(x: Tensor) -> None:
    triton = pytest.importorskip("triton")
    tl = pytest.importorskip("triton.language")

    def double(source: Any, target: Any, length: tl.constexpr) -> None:
        offsets = tl.arange(0, length)
        tl.store(target + offsets, tl.load(source + offsets) * 2)

    double.__globals__["tl"] = tl
    kernel = triton.jit(double)
    row, target = torch.zeros(4), torch.zeros(4)

    def function() -> Tensor:
        kernel[(1,)](row + 1, target, length=4)
        return target + 0.5

    kernel[(1,)](row, target, length=4)
    graph, y = capture(function)
    assert y.tolist() == [2.5] * 4
    row.fill_(3)

    graph.replay()

    assert y.tolist() == [8.5] * 4
