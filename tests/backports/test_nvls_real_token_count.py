"""What the NVLS dispatcher reads after a suspension, on whichever release is installed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.ours.nvls_real_token_count import NVLS_REAL_TOKEN_COUNT
from megatron_patch.testing import engines

from ..conftest import RELEASE
from ..upstream import support
from .checks import needs, proof, state_of

MASKS = RELEASE >= Version("0.19")

pytestmark = pytest.mark.usefixtures("device")
only_masking = pytest.mark.skipif(not MASKS, reason=f"{RELEASE} routes padding as any token")


@pytest.fixture
def opted_in(device, monkeypatch):  # type: ignore[no-untyped-def]
    megatron_patch.uninstall()
    monkeypatch.setenv("MEGATRON_PATCH", "all,nvls-real-token-count")
    megatron_patch.install()
    yield
    megatron_patch.uninstall()
    monkeypatch.undo()
    megatron_patch.install()


@pytest.fixture
def dispatcher(monkeypatch):  # type: ignore[no-untyped-def]
    """Megatron's dispatcher for two expert-parallel ranks, without the buffers of NVLS."""
    from megatron.core.transformer.moe.token_dispatcher_inference import NVLSAllGatherVDispatcher

    make_config = engines.transformer_config

    def config(spec: testing.EngineSpec):  # type: ignore[no-untyped-def]
        made = make_config(spec)
        made.inference_moe_token_dispatcher_type = "nvls"
        return made

    monkeypatch.setattr(engines, "transformer_config", config)
    monkeypatch.setattr(NVLSAllGatherVDispatcher, "allocate_buffers", lambda **_: None)
    monkeypatch.setattr(NVLSAllGatherVDispatcher, "_real_token_count_tensor", None)
    return NVLSAllGatherVDispatcher


def build(mode: str):  # type: ignore[no-untyped-def]
    from megatron.core.process_groups_config import ProcessGroupCollection

    groups = ProcessGroupCollection.use_mpu_process_groups()
    groups.ep = SimpleNamespace(size=lambda: 2, rank=lambda: 0)
    options = {"pg_collection": groups}
    return testing.build_context(testing.EngineSpec(kv_cache_management_mode=mode, options=options))


def step(context, prompt_length: int) -> None:  # type: ignore[no-untyped-def]
    """As in a step of the engine with one new prompt."""
    context.reset()
    support.add(context, 0, range(prompt_length))
    support.publish(context)


def suspend_and_resume(context) -> None:  # type: ignore[no-untyped-def]
    support.deallocate(context)
    support.allocate(context)


def state() -> State:
    testing.context_class()
    return state_of(NVLS_REAL_TOKEN_COUNT)


def test_it_is_off_by_default():
    assert state() is State.DISABLED


def test_state_when_it_is_selected(opted_in):
    assert state() is (State.APPLIED if MASKS else State.NOT_APPLICABLE)


@only_masking
@pytest.mark.parametrize("mode", ["persist", "offload", "recompute"])
def test_the_count_is_that_of_the_step(opted_in, dispatcher, mode):
    context = build(mode)
    for prompt_length in (20, 33, 7):
        step(context, prompt_length)
        assert dispatcher._real_token_count_tensor.tolist() == [prompt_length]
        suspend_and_resume(context)
        step(context, prompt_length + 10)
        assert dispatcher._real_token_count_tensor.tolist() == [prompt_length + 10]


@proof
@pytest.mark.usefixtures("opted_in_by_default")
def test_after_a_suspension_the_count_is_that_of_the_step(request):
    try:
        from megatron.core.transformer.moe import token_dispatcher_inference as module
    except ImportError:
        module = None
    cls = getattr(module, "NVLSAllGatherVDispatcher", None)
    needs(hasattr(cls, "set_real_token_count_tensor"), "a dispatcher that is told the count")
    dispatcher = request.getfixturevalue("dispatcher")
    context = build("recompute")
    for prompt_length in (20, 33):
        step(context, prompt_length)
        assert dispatcher._real_token_count_tensor.tolist() == [prompt_length]
        suspend_and_resume(context)


@only_masking
def test_unpatched_the_count_is_that_of_the_step_before_the_suspension(unpatched, dispatcher):
    context = build("recompute")
    step(context, 20)
    suspend_and_resume(context)
    step(context, 33)
    assert context.gpu_view.real_token_count.tolist() == [33]
    assert dispatcher._real_token_count_tensor.tolist() == [20]


@only_masking
def test_another_dispatcher_is_left_alone(opted_in):
    from megatron.core.transformer.moe.token_dispatcher_inference import NVLSAllGatherVDispatcher

    context = testing.build_context(testing.EngineSpec(kv_cache_management_mode="recompute"))
    suspend_and_resume(context)
    assert NVLSAllGatherVDispatcher._real_token_count_tensor is None
