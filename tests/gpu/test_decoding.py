"""What the stand-ins on a CPU cannot show: graph replay, memory of the device, many steps."""

from __future__ import annotations

import gc
from collections import defaultdict

import pytest
import torch
from packaging.version import Version

import megatron_patch
from megatron_patch import testing

from ..backports.test_input_position_view_cache import deallocating_modes, storage
from ..conftest import RELEASE, SOURCE
from .kernels import rounds_to_bfloat16, spec_of

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda_device")]

# They end one after the other, so that several sizes of graphs are replayed.
REQUESTS = [
    testing.Request(prompt=tuple(range(1 + n, 9 + n)), num_tokens=6 + 4 * n) for n in range(12)
]
SIZE = {"max_requests": 16, "max_tokens": 128}
GRAPHS = {**SIZE, "num_cuda_graphs": 4}


class Calls:
    """Addresses of the views that the getter returns to the controller, by their token count."""

    def __init__(self, context):
        self.addresses = defaultdict(set)
        self.count = self.with_graph = 0
        self._context = context
        self._getter = context.current_input_and_position_ids
        context.current_input_and_position_ids = self

    def __call__(self, **arguments):
        views = self._getter(**arguments)
        tokens = tuple(view.data_ptr() for view in views)
        self.addresses[views[0].shape[1]].add(tokens)
        self.count += 1
        self.with_graph += bool(self._context.using_cuda_graph_this_step())
        return views


def test_views_keep_their_address_while_graphs_are_replayed():
    engine = testing.build_engine(spec_of(**GRAPHS))
    calls = Calls(engine.context)
    decoded = testing.decode(engine, REQUESTS)
    assert calls.count == decoded.steps
    assert calls.with_graph >= decoded.steps - 1
    names = ("token_to_input_ids", "token_to_pos_ids")
    there = tuple(getattr(storage(engine.context), name).data_ptr() for name in names)
    assert len(calls.addresses) > 1
    assert all(addresses == {there} for addresses in calls.addresses.values())


def real_rows(decoded):
    """The number of rows of the logits that are no padding, in each step."""
    return [sum(step < r.num_tokens for r in REQUESTS) for step in range(decoded.steps)]


def test_graphs_give_the_tokens_and_logits_of_steps_without():
    with_graphs = testing.decode(testing.build_engine(spec_of(**GRAPHS)), REQUESTS)
    spec = spec_of(**SIZE)
    eager = testing.decode(testing.build_engine(spec), REQUESTS)
    # Products of matrices with other numbers of rows are not the same bit for bit.
    if rounds_to_bfloat16():
        same_up_to_rounding(with_graphs, eager)
        return
    expected = testing.reference_decode(testing.build_model(spec), REQUESTS)
    assert with_graphs.tokens == eager.tokens == expected
    for rows, one, other in zip(real_rows(eager), with_graphs.logits, eager.logits, strict=True):
        torch.testing.assert_close(one[:, :rows], other[:, :rows], rtol=1e-4, atol=1e-4)


def same_up_to_rounding(one, other):
    """The logits of requests that have had the same tokens, as long as none has ended.

    Two tokens that are nearly alike can be exchanged by rounding, and what follows is another text.
    """
    together = min(request.num_tokens for request in REQUESTS)
    compared = 0
    for step in range(together):
        rows = [
            row
            for row in range(len(REQUESTS))
            if one.tokens[row][:step] == other.tokens[row][:step]
        ]
        compared += len(rows)
        mine, its = (decoded.logits[step][:, rows] for decoded in (one, other))
        torch.testing.assert_close(mine, its, rtol=0.05, atol=0.05)
    assert compared > together * len(REQUESTS) // 2


@pytest.mark.parametrize("fields", [SIZE, GRAPHS], ids=["eager", "graphs"])
def test_patches_change_no_bit_of_the_output(unpatched, fields):
    without = testing.decode(testing.build_engine(spec_of(**fields)), REQUESTS)
    megatron_patch.install()
    patched = testing.decode(testing.build_engine(spec_of(**fields)), REQUESTS)
    assert patched.tokens == without.tokens
    for rows, one, other in zip(real_rows(without), patched.logits, without.logits, strict=True):
        assert one[:, :rows].equal(other[:, :rows])


def allocated() -> int:
    gc.collect()
    return torch.cuda.memory_allocated()


def freed_by_suspending(fields) -> tuple[int, int]:
    """Bytes that come back when an engine that has decoded is suspended, and those of its cache."""
    engine = testing.build_engine(spec_of(**SIZE, **fields))
    # The first suspension also drops the graphs that other engines have left in Megatron.
    testing.suspend(engine)
    testing.resume(engine)
    testing.decode(engine, REQUESTS, capture_logits=False)
    cache = engine.context.memory_buffer.nbytes
    before = allocated()
    testing.suspend(engine)
    freed = before - allocated()
    testing.resume(engine)
    assert testing.decode(engine, REQUESTS, capture_logits=False).steps > 0
    return freed, cache


@pytest.mark.skipif(RELEASE < Version("0.16"), reason=f"{RELEASE} cannot suspend its engine")
def test_suspending_frees_as_many_bytes_as_without_patches():
    for fields in deallocating_modes():
        freed, cache = freed_by_suspending(fields)
        assert freed > cache
        if not SOURCE:
            megatron_patch.uninstall()
            try:
                assert freed_by_suspending(fields) == (freed, cache)
            finally:
                megatron_patch.install()


def test_memory_is_stable_over_10_000_decode_steps():
    spec = spec_of(
        max_sequence_length=10_240, block_size_tokens=256, max_tokens=64, num_cuda_graphs=4
    )
    engine = testing.build_engine(spec)
    requests = [testing.Request((1 + n, 2, 3), 10_000 - 2_500 * n) for n in range(4)]
    bytes_at = {}

    def note(engine, step):
        if step in (1_000, 9_990):
            torch.cuda.synchronize()
            bytes_at[step] = allocated()

    decoded = testing.decode(engine, requests, on_step=note, capture_logits=False)
    assert decoded.steps >= 10_000
    # Requests that have ended leave nothing behind, and may take something with them.
    assert bytes_at[9_990] <= bytes_at[1_000]
    assert len(engine.context._input_position_views) <= 1 + spec.max_requests
