"""The view cache on the real context and engine of whatever release is installed.

``test_source_between_4306_and_4634`` runs this module again on 0.18 with the uncached getter of
that time, where the storage is ``gpu_view``.
"""

from __future__ import annotations

import gc
import inspect
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.input_position_view_cache import INPUT_POSITION_VIEW_CACHE
from megatron_patch.edits import is_known_by_digest
from megatron_patch.judge import judge
from megatron_patch.sources import read_source
from megatron_patch.testing.version import core_version
from megatron_patch.verdicts import Verdict

from ..conftest import RELEASE, expected_state, not_in_source
from ..upstream import support
from .checks import assert_same_outputs, proof, state_of, with_one_token_changed

UNCACHED_018 = "MEGATRON_PATCH_TEST_UNCACHED_018" in os.environ
PATCHED = RELEASE < Version("0.18") or UNCACHED_018

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(not PATCHED, reason="upstream's own code runs")

REQUESTS = (
    testing.Request(prompt=(5, 6, 7, 8), num_tokens=12),
    testing.Request(prompt=tuple(range(1, 40)), num_tokens=5),
    testing.Request(prompt=(9, 10), num_tokens=7, arrival_step=3),
    testing.Request(prompt=(11, 12, 13), num_tokens=9, arrival_step=6),
)


def state() -> State:
    return state_of(INPUT_POSITION_VIEW_CACHE)


def storage(context):  # type: ignore[no-untyped-def]
    """The object whose attributes the views are taken from."""
    return getattr(context, "gpu_view", context)


def context_of(tokens: int = 64, **fields):  # type: ignore[no-untyped-def]
    context = testing.build_context(testing.EngineSpec(**fields))
    context.padded_active_token_count = tokens
    return context


def assert_fresh(context, views) -> None:  # type: ignore[no-untyped-def]
    """The views are what slicing the storage now gives: value, address, shape, strides, dtype."""
    tokens = context.padded_active_token_count
    names = ("token_to_input_ids", "token_to_pos_ids")
    for view, name in zip(views, names, strict=True):
        expected = getattr(storage(context), name)[:tokens].unsqueeze(0)
        assert view.data_ptr() == expected.data_ptr()
        assert (view.shape, view.stride(), view.dtype) == (
            expected.shape,
            expected.stride(),
            expected.dtype,
        )
        assert view.tolist() == expected.tolist()


def test_the_installed_release_is_the_expected_one():
    version = core_version()
    assert version == os.environ.get("EXPECTED_MEGATRON_CORE", version)


def test_state():
    testing.context_class()
    assert state() is expected_state(State.APPLIED if PATCHED else State.UPSTREAMED)


def test_what_runs_is_a_plain_function_in_the_class():
    function = vars(testing.context_class())["current_input_and_position_ids"]
    assert inspect.isfunction(function)
    assert list(inspect.signature(function).parameters) == ["self", "num_warmup_tokens"]
    parameter = inspect.signature(function).parameters["num_warmup_tokens"]
    assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, None)


def test_second_call_returns_the_same_objects():
    context = context_of()
    assert context._input_position_views == {}
    assert type(context._input_position_views) is dict
    first = context.current_input_and_position_ids()
    second = context.current_input_and_position_ids()
    assert first[0] is second[0]
    assert first[1] is second[1]
    assert list(context._input_position_views) == [64]
    assert_fresh(context, second)


@only_patched
def test_unpatched_it_returns_new_objects_each_time(unpatched):
    context = context_of()
    first = context.current_input_and_position_ids()
    second = context.current_input_and_position_ids()
    assert first[0] is not second[0]
    assert first[1] is not second[1]
    if not UNCACHED_018:
        assert not hasattr(context, "_input_position_views")


def test_each_token_count_has_its_own_views():
    context = context_of()
    of_64 = context.current_input_and_position_ids()
    of_8 = context.current_input_and_position_ids(num_warmup_tokens=8)
    assert (of_64[0].shape, of_8[0].shape) == ((1, 64), (1, 8))
    assert context.current_input_and_position_ids(num_warmup_tokens=64)[0] is of_64[0]
    for default in (0, None):
        assert context.current_input_and_position_ids(num_warmup_tokens=default)[0] is of_64[0]
    context.padded_active_token_count = 8
    assert context.current_input_and_position_ids()[1] is of_8[1]
    assert sorted(context._input_position_views) == [8, 64]
    with pytest.raises(TypeError):
        context.current_input_and_position_ids(8)


@proof
def test_writes_to_the_storage_show_in_cached_views():
    context = context_of()
    views = context.current_input_and_position_ids()
    for step in range(3):
        storage(context).token_to_input_ids.fill_(10 + step)
        storage(context).token_to_pos_ids.fill_(20 + step)
        again = context.current_input_and_position_ids()
        assert again[0] is views[0]
        assert set(again[0].flatten().tolist()) == {10 + step}
        assert set(again[1].flatten().tolist()) == {20 + step}
    views[0][0, 3] = 99
    assert storage(context).token_to_input_ids[3] == 99


@proof
def test_after_a_suspension_the_views_are_of_the_storage_of_now():
    context = context_of(**support.deallocating())
    context.current_input_and_position_ids()
    support.deallocate(context)
    support.allocate(context)
    context.padded_active_token_count = 64
    assert_fresh(context, context.current_input_and_position_ids())


def test_reset_keeps_the_storage_and_shows_zeros():
    context = context_of()
    if storage(context) is context:
        context.token_to_input_ids.fill_(7)
    views = context.current_input_and_position_ids()
    context.reset()
    context.padded_active_token_count = 64
    again = context.current_input_and_position_ids()
    assert_fresh(context, again)
    assert again[0].data_ptr() == views[0].data_ptr()
    assert not again[0].any()


def test_transfer_keeps_the_identity_of_the_storage():
    context = context_of()
    if not hasattr(context, "transfer_bookkeeping_to_gpu"):
        pytest.skip(f"{RELEASE} has no transfer_bookkeeping_to_gpu")
    context.initialize_attention_state()
    context.padded_active_token_count = 64
    views = context.current_input_and_position_ids()
    kept = storage(context).token_to_input_ids
    address = kept.data_ptr()
    context.token_to_input_ids[:64] = 41
    context.token_to_pos_ids[:64] = 42
    context.transfer_bookkeeping_to_gpu()
    assert storage(context).token_to_input_ids is kept
    assert kept.data_ptr() == address
    again = context.current_input_and_position_ids()
    assert again[0] is views[0]
    assert set(again[0].flatten().tolist()) == {41}
    assert set(again[1].flatten().tolist()) == {42}


@only_patched
@pytest.mark.parametrize("name", ["token_to_input_ids", "token_to_pos_ids"])
def test_storage_that_is_reassigned_is_never_stale_nor_kept(name):
    context = context_of()
    context.current_input_and_position_ids()
    context.current_input_and_position_ids(num_warmup_tokens=8)
    old = weakref.ref(getattr(storage(context), name))
    setattr(storage(context), name, getattr(storage(context), name).clone().fill_(5))
    again = context.current_input_and_position_ids()
    assert_fresh(context, again)
    assert list(context._input_position_views) == [64]
    gc.collect()
    assert old() is None


def deallocating_modes() -> list[dict[str, object]]:
    if RELEASE < Version("0.16"):
        return []
    if RELEASE < Version("0.17"):
        return [{"unified_memory_level": 0}]
    return [{"kv_cache_management_mode": "recompute"}]


@pytest.mark.parametrize("fields", deallocating_modes())
def test_deallocation_frees_the_storage_and_allocation_gives_new_views(fields):
    context = context_of(**fields)
    old = context.current_input_and_position_ids()
    freed = weakref.ref(storage(context).token_to_input_ids)
    views = weakref.ref(old[0])
    del old
    if hasattr(context, "deallocate_all_tensors"):
        context.deallocate_all_tensors()
    else:
        context.deallocate_inference_state_buffers()
    gc.collect()
    if PATCHED:
        assert context._input_position_views == {}
        assert views() is None
        if storage(context) is context:
            assert freed() is None
            with pytest.raises(AttributeError, match="token_to_input_ids"):
                context.current_input_and_position_ids()
    if hasattr(context, "allocate_all_tensors"):
        context.allocate_all_tensors(is_init=False)
    else:
        context.reinitialize_inference_state_buffers()
    context.padded_active_token_count = 64
    assert context._input_position_views == {}
    assert_fresh(context, context.current_input_and_position_ids())


@only_patched
def test_contexts_that_were_built_before_the_patch(unpatched):
    context = context_of()
    context.current_input_and_position_ids()
    megatron_patch.install()
    assert state() is State.APPLIED
    first = context.current_input_and_position_ids()
    assert first[0] is context.current_input_and_position_ids()[0]
    assert_fresh(context, first)


def test_the_speculative_assertion_is_checked_on_hits(mocker):
    context = context_of()
    if not hasattr(context, "num_speculative_tokens"):
        pytest.skip(f"{RELEASE} has no speculative decoding in this call")
    context.current_input_and_position_ids(num_warmup_tokens=8)
    mocker.patch.object(context, "num_speculative_tokens", 3)
    mocker.patch.object(context, "padded_batch_dimensions", mocker.Mock(decode_req_count=4))
    with pytest.raises(AssertionError):
        context.current_input_and_position_ids(num_warmup_tokens=8)
    context.current_input_and_position_ids(num_warmup_tokens=16)


def test_entries_are_bounded_by_the_padded_token_counts():
    context = context_of(max_tokens=16384)
    for tokens in range(1, 16385, 7):
        context.padded_active_token_count = context.round_up_tokens(tokens)
        context.current_input_and_position_ids()
    assert len(context._input_position_views) == 256


@only_patched
def test_a_decode_builds_views_once_for_each_token_count(mocker):
    spy = mocker.spy(testing.context_class(), "_cache_input_position_views")
    engine = testing.build_engine(testing.EngineSpec())
    before = spy.call_count
    decoded = testing.decode(engine, REQUESTS)
    counts = [call.args[1] for call in spy.call_args_list[before:]]
    assert decoded.steps > len(counts) >= 1
    assert len(counts) == len(set(counts))


def run(**fields):  # type: ignore[no-untyped-def]
    return testing.decode(testing.build_engine(testing.EngineSpec(**fields)), REQUESTS)


@pytest.mark.parametrize("fields", [{}, {"num_cuda_graphs": 1}], ids=["eager", "padded"])
def test_tokens_and_logits_are_bit_identical_with_the_uncached_path(unpatched, fields):
    without = run(**fields)
    megatron_patch.install()
    cached = run(**fields)
    assert [len(tokens) for tokens in cached.tokens] == [r.num_tokens for r in REQUESTS]
    assert len({r.arrival_step + r.num_tokens for r in REQUESTS}) > 2
    assert_same_outputs(without, cached)


def suspending(engine, step):  # type: ignore[no-untyped-def]
    if step in (2, 5, 8):
        testing.suspend(engine)
        testing.resume(engine)


def suspend_modes() -> list[dict[str, object]]:
    if RELEASE < Version("0.16"):
        return []
    if RELEASE < Version("0.17"):
        return [{"unified_memory_level": 0}]
    return [{"kv_cache_management_mode": mode} for mode in ("persist", "offload", "recompute")]


@pytest.mark.parametrize("fields", suspend_modes(), ids=str)
def test_suspend_and_resume(unpatched, fields):
    spec = testing.EngineSpec(**fields)  # type: ignore[arg-type]
    through = testing.decode(testing.build_engine(spec), REQUESTS)
    without = testing.decode(testing.build_engine(spec), REQUESTS, on_step=suspending)
    megatron_patch.install()
    cached = testing.decode(testing.build_engine(spec), REQUESTS, on_step=suspending)
    assert_same_outputs(without, cached)
    assert cached.tokens == through.tokens


@only_patched
@not_in_source
def test_one_changed_token_in_any_target_is_drifted():
    variant = judge(INPUT_POSITION_VIEW_CACHE, read_source).variant
    assert variant is not None
    for target in {edit.target for edit in variant.edits if is_known_by_digest(edit)}:
        judgement = judge(INPUT_POSITION_VIEW_CACHE, with_one_token_changed(target))
        assert judgement.verdict is Verdict.DRIFTED
        assert target in judgement.reason


@not_in_source
def test_source_between_4306_and_4634(tmp_path):
    if RELEASE < Version("0.18") or RELEASE >= Version("0.19") or UNCACHED_018:
        pytest.skip("made from the 0.18 wheel")
    import megatron.core

    shutil.copytree(Path(megatron.core.__file__).parent, tmp_path / "megatron" / "core")
    path = tmp_path / "megatron/core/inference/contexts/dynamic_context.py"
    text = path.read_text(encoding="utf-8")
    start = text.index("        cached = self._input_position_views.get(num_tokens)\n")
    end = text.index("    def ", start)
    uncached = (
        "        return (\n"
        "            self.gpu_view.token_to_input_ids[:num_tokens].unsqueeze(0),\n"
        "            self.gpu_view.token_to_pos_ids[:num_tokens].unsqueeze(0),\n"
        "        )\n\n"
    )
    path.write_text(text[:start] + uncached + text[end:], encoding="utf-8")
    inherited = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *([inherited] if inherited else [])]),
        "MEGATRON_PATCH_TEST_UNCACHED_018": "1",
    }
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
