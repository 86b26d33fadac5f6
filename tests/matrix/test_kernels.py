"""What is drawn for flash-attn, and what an error costs that takes a GPU from a process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_patch import testing
from tools import matrix
from tools.differential import building, devices, draws, judging, kernels
from tools.differential.configuration import Configuration, Plan, decode, encode
from tools.differential.devices import DeviceLostError
from tools.differential.drawing import Abilities, configurations
from tools.differential.observing import Observation
from tools.differential.searching import Search

BLOCK = kernels.BLOCK


def of_flash_attn() -> Abilities:
    """What is drawn where flash-attn was built without windows."""
    return replace(Abilities.installed(), stretched=True, latents=False, windows=False)


@settings(suppress_health_check=list(HealthCheck), max_examples=40)
@given(st.data())
def test_what_is_drawn_for_flash_attn_is_what_it_takes(device, data):
    configuration = data.draw(configurations(of_flash_attn()))
    assert configuration.dtype == "bfloat16"
    assert configuration.block_size == BLOCK
    assert not configuration.latents
    assert configuration.window is None
    assert decode(encode(configuration)) == configuration
    testing.build_context(building.spec(configuration))


def blocks_and_rest(plan: Plan, size: int) -> tuple[int, int]:
    """The blocks of a prompt, and the tokens that fit into its last one beside it."""
    blocks = -(-plan.length // size)
    return blocks, blocks * size - plan.length


@settings(max_examples=200)
@given(
    st.sampled_from([4, 8]),
    st.lists(st.tuples(st.integers(0, 88), st.integers(-1, 70)), min_size=1, max_size=4),
)
def test_as_many_blocks_as_before(size, requests):
    plans = tuple(Plan(length=length, num_tokens=tokens) for length, tokens in requests)
    before = Configuration(requests=plans, block_size=size, longest=64)
    after = kernels.stretched(before)
    assert after.max_tokens // BLOCK == before.max_tokens // size
    for short, long in zip(before.requests, after.requests, strict=True):
        assert blocks_and_rest(short, size) == blocks_and_rest(long, BLOCK)
        assert short.is_too_long(before.longest) == long.is_too_long(after.longest)
        assert (short.length > before.max_tokens) == (long.length > after.max_tokens)
        if not short.is_too_long(before.longest):
            assert short.num_tokens == long.num_tokens


@pytest.mark.parametrize("size", [4, 8])
def test_prompts_that_shared_blocks_share_them_still(size):
    plans = [Plan(stem=stem, length=40) for stem in range(8)]
    after = kernels.stretched(Configuration(requests=tuple(plans), block_size=size)).requests

    def shared(one: tuple[int, ...], other: tuple[int, ...], size: int) -> int:
        same = [mine == its for mine, its in zip(one, other, strict=True)]
        return [*same, False].index(False) // size

    pairs = [(one, other) for one in range(8) for other in range(8)]
    before = [shared(plans[one].prompt, plans[other].prompt, size) for one, other in pairs]
    assert before == [shared(after[one].prompt, after[other].prompt, BLOCK) for one, other in pairs]
    assert set(before) > {0, 40 // size}


def test_the_stand_in_takes_all_that_is_drawn():
    assert not kernels.are_real()
    assert kernels.have_windows()


class Lost:
    """In place of a device that every run with some patches takes from the process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, selection: str) -> None:
        self.selection, self.now = selection, ""
        monkeypatch.setattr(judging, "run", lambda configuration: self.run())
        monkeypatch.setattr(devices, "_failure", lambda: self.failure())

    def run(self) -> Observation:
        if self.failure() is not None:
            raise RuntimeError("all calls fail then")
        return Observation({"error": "the same each time"})

    def failure(self) -> str | None:
        return "CUDA error: device-side assert" if self.now == self.selection else None

    def runner(self) -> judging.Runner:
        run_with = judging.runner(Forced(self))  # type: ignore[arg-type]
        return run_with


class Forced:
    def __init__(self, lost: Lost) -> None:
        self.lost = lost

    def force(self, selection):
        from contextlib import nullcontext

        self.lost.now = selection
        return nullcontext()

    anew = force

    def applied(self, selection):
        return []


@pytest.mark.parametrize("selection", ["none", "all"])
def test_a_search_ends_where_the_device_is_lost_and_says_with_which_patches(
    device, monkeypatch, selection
):
    run_with = Lost(monkeypatch, selection).runner()
    search = Search(Abilities.installed(), run_with, ())
    search.run(0, examples=5)
    assert search.lost is not None
    assert repr(selection) in str(search.lost)
    assert "CUDA error: device-side assert" in str(search.lost)
    assert search.examples == 0  # what was not judged does not count
    assert search.found == []


def test_the_error_that_came_with_it_is_kept(device, monkeypatch):
    run_with = Lost(monkeypatch, "none").runner()
    with pytest.raises(DeviceLostError, match="'none'") as raised:
        run_with(Configuration(), "none")
    assert "all calls fail then" in str(raised.value.__cause__)
    assert raised.value.configuration == Configuration()


def test_other_errors_are_what_they_were(device, monkeypatch):
    def fail(configuration: Configuration) -> Observation:
        raise KeyError("a defect of the matrix")

    lost = Lost(monkeypatch, "never")
    monkeypatch.setattr(judging, "run", fail)
    with pytest.raises(KeyError, match="a defect of the matrix"):
        lost.runner()(Configuration(), "none")


def test_a_cpu_is_never_lost(device):
    if device.type == "cpu":
        assert devices._failure() is None


def test_random_numbers_are_those_of_the_device():
    assert draws.default_generator(torch.device("cpu")) is torch.default_generator


def test_a_device_that_is_not_there_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        matrix.main(["--device", "cuda"])
    assert ended.value.code == 2
    assert "there is no CUDA device" in capsys.readouterr().err


class Cuda:
    """In place of the parts of a device that are asked whether it is of use."""

    type = "cuda"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: str = "") -> None:
        self.fails, self.state = fails, ["as it was"]
        monkeypatch.setattr(devices, "running", lambda: self)
        monkeypatch.setattr(devices, "default_generator", lambda device: self)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self._do("wait"))
        monkeypatch.setattr(torch, "rand", lambda *shape, device: self._do("draw"))

    on_cpu = False

    @property
    def device(self) -> Cuda:
        return self

    def _do(self, what: str) -> None:
        if what == self.fails:
            raise RuntimeError(f"cannot {what}\nand more")
        if what == "draw":
            self.state = ["another"]

    def get_state(self) -> list[str]:
        return self.state

    def set_state(self, state: list[str]) -> None:
        self.state = state


def test_a_device_is_lost_where_it_cannot_be_waited_for_or_drawn_on(monkeypatch):
    for fails in ("wait", "draw"):
        Cuda(monkeypatch, fails)
        assert devices._failure() == f"cannot {fails}"


def test_a_device_of_use_has_its_random_numbers_afterwards(monkeypatch):
    device = Cuda(monkeypatch)
    assert devices._failure() is None
    assert device.state == ["as it was"]


class Probabilities:
    """Of a GPU, as far as it is asked for them."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = torch.tensor([numbers])
        self.device = torch.device("cuda")

    def __ge__(self, other: float) -> torch.Tensor:
        return self.numbers >= other

    def __lt__(self, other: float) -> torch.Tensor:
        return self.numbers < other

    def sum(self, dimension: int) -> torch.Tensor:
        return self.numbers.sum(dimension)


@pytest.mark.parametrize("numbers", [(0.5, float("nan")), (float("inf"), 0.0), (1.5, -0.5), (0, 0)])
def test_what_a_kernel_would_assert_is_an_exception_in_the_words_of_a_cpu(numbers):
    with pytest.raises(RuntimeError) as on_cpu:
        torch.multinomial(torch.tensor([numbers], dtype=torch.float32), 1)
    with pytest.raises(RuntimeError) as on_gpu:
        draws._check(Probabilities(*numbers))
    assert str(on_gpu.value) == str(on_cpu.value).partition("\n")[0]
    draws._check(Probabilities(0.5, 0.5))
