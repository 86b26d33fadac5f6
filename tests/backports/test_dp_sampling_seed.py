"""What data-parallel ranks sample, on whichever release is installed."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.upstream.dp_sampling_seed import DP_SAMPLING_SEED
from megatron_patch.edits import Target

from ..conftest import RELEASE
from .checks import needs, proof, state_of

SEEDED = RELEASE >= Version("0.15")
PATCHED = SEEDED and RELEASE < Version("0.19")

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(
    not PATCHED, reason=f"{RELEASE} does not seed its sampling, or seeds it by rank"
)

REQUEST = testing.Request(prompt=(1, 2, 3), num_tokens=20)


@pytest.fixture
def opted_in(device, monkeypatch):  # type: ignore[no-untyped-def]
    megatron_patch.uninstall()
    monkeypatch.setenv("MEGATRON_PATCH", "all,dp-sampling-seed")
    megatron_patch.install()
    yield
    megatron_patch.uninstall()
    monkeypatch.undo()
    megatron_patch.install()


@pytest.fixture(autouse=True)
def rank_zero(device):  # type: ignore[no-untyped-def]
    yield
    be(None)


def be(rank: int | None) -> None:
    """Make this process the rank of its data-parallel group, by Megatron's own override."""
    from megatron.core import parallel_state

    parallel_state.set_data_parallel_rank(rank)


def seed(engine) -> int:  # type: ignore[no-untyped-def]
    return int(engine.controller.sampling_rng.initial_seed())


def sample(rank: int) -> tuple[int, ...]:
    """The tokens that the rank samples for the request."""
    be(rank)
    engine = testing.build_engine(testing.EngineSpec())
    decoded = testing.decode(engine, [REQUEST], sampling={"top_k": 0, "temperature": 5.0})
    return decoded.tokens[0]


def state() -> State:
    testing.context_class()
    importlib.import_module(Target.parse(DP_SAMPLING_SEED.target).module)
    return state_of(DP_SAMPLING_SEED)


def test_it_is_off_by_default():
    assert state() is State.DISABLED


def test_state_when_it_is_selected(opted_in):
    unpatched = State.UPSTREAMED if SEEDED else State.NOT_APPLICABLE
    assert state() is (State.APPLIED if PATCHED else unpatched)


@only_patched
def test_ranks_draw_different_samples_each_the_same_again(opted_in):
    first = [sample(rank) for rank in range(3)]
    assert len({*first}) == 3
    assert [sample(rank) for rank in range(3)] == first


@proof
@pytest.mark.usefixtures("opted_in_by_default")
def test_each_rank_draws_samples_of_its_own_again(monkeypatch):
    from megatron.core import parallel_state

    # Upstream's own change reads the rank from the group, not from Megatron's override.
    ranks, of_data = torch.distributed.get_rank, parallel_state.get_data_parallel_group()
    monkeypatch.setattr(
        torch.distributed,
        "get_rank",
        lambda group=None: (
            parallel_state.get_data_parallel_rank() if group is of_data else ranks(group)
        ),
    )
    be(0)
    engine = testing.build_engine(testing.EngineSpec())
    needs(hasattr(engine.controller, "sampling_rng"), "a generator for samples that is seeded")
    samples = [sample(rank) for rank in range(3)]
    assert len({*samples}) == 3
    assert sample(1) == samples[1]


@only_patched
def test_rank_zero_draws_what_it_draws_without_the_patch(opted_in):
    with_patch = sample(0)
    megatron_patch.uninstall()
    assert sample(0) == with_patch


@only_patched
def test_unpatched_all_ranks_draw_the_same(unpatched):
    assert sample(0) == sample(1) == sample(2)


@only_patched
def test_the_rank_is_that_in_the_given_groups(opted_in):
    if RELEASE < Version("0.17"):
        pytest.skip(f"{RELEASE} takes no groups")
    from megatron.core.process_groups_config import ProcessGroupCollection

    groups = ProcessGroupCollection.use_mpu_process_groups()
    groups.dp = SimpleNamespace(rank=lambda: 5)
    engine = testing.build_engine(testing.EngineSpec(options={"pg_collection": groups}))
    assert seed(engine) == engine.controller.model_config.inference_sampling_seed + 5


@only_patched
def test_nothing_is_added_in_deterministic_mode(opted_in):
    be(1)
    engine = testing.build_engine(testing.EngineSpec())
    config = engine.controller.inference_wrapped_model.model.config
    config.deterministic_mode = True
    again = type(engine.controller)(engine.controller.inference_wrapped_model, tokenizer=None)
    assert again.sampling_rng.initial_seed() == config.inference_sampling_seed == seed(engine) - 1
