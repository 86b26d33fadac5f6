"""Fixtures of the tests that run Megatron."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import megatron_patch
from megatron_patch import State, notices, testing
from megatron_patch.testing.version import core_release

# For `tools`. Last, so that the package itself is the installed one where there is one.
sys.path.append(str(Path(__file__).parents[1]))

#: The release that tests compare with: 0.18.0 also where the version is 0.18.0rc0.
RELEASE = core_release()
# For children that must not import the package to ask it: see `tests/lifecycle/suite.py`.
os.environ["TESTED_MEGATRON_CORE"] = str(RELEASE)

#: The imported Megatron is one of `tools/patched_tree.py`, with the patches in its source.
SOURCE = "MEGATRON_PATCH_TEST_SOURCE" in os.environ

not_in_source = pytest.mark.skipif(SOURCE, reason="the source itself is patched")


def expected_state(state: State) -> State:
    """The state of a patch which is ``state`` where Megatron is as it was released."""
    return State.UPSTREAMED if SOURCE and state is State.APPLIED else state


# HYPOTHESIS_PROFILE says how many examples property tests try: `ci`, the default, the same few
# ones each time; `nightly`, ten times as many, other ones each time. Tests that want more or fewer
# scale the profile's number. To reproduce a failure, use what it prints with the same profile.
hypothesis.settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile(
    "nightly", max_examples=1000, deadline=None, derandomize=False, print_blob=True
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-pin-a-variant",
        action="store_true",
        help="leave out what a newer pin tests as well, see tests/one_pin.py",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--one-pin-a-variant"):
        return
    from .one_pin import left

    gone = {item: None for item in left(items)}
    config.hook.pytest_deselected(items=[*gone])
    items[:] = [item for item in items if item not in gone]


@pytest.fixture(autouse=True)
def no_line_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning that is an error here, as all are, is a line on stderr: and so an error."""
    monkeypatch.setattr(notices, "line", pytest.fail)


@pytest.fixture(scope="session")
def device() -> Iterator[Any]:
    """The device that Megatron runs on: CUDA where there is one, else the CPU with stand-ins."""
    found = testing.start()
    # PyTorch and Megatron keep half a million objects that are no garbage, and each search for some
    # among them takes a third of a second. Tests, and Megatron, search often.
    testing.context_class()
    gc.freeze()
    yield found
    testing.stop()


@pytest.fixture(autouse=True, scope="module")
def what_is_there_is_no_garbage() -> None:
    """What earlier files have imported and kept is not searched again in the tests of this one."""
    gc.collect()
    gc.freeze()


#: The file whose tests have left Megatron as it was released, for further tests in it.
LEFT_UNPATCHED = pytest.StashKey[Path | None]()


@pytest.fixture
def unpatched(device: Any, request: pytest.FixtureRequest) -> Iterator[None]:
    """Megatron as it was released, for the length of one test.

    Installing the patches takes longer than most tests. So they stay uninstalled for the next test
    of the file if that has this fixture too; for any other test they are installed again first.
    """
    if SOURCE:
        pytest.skip("the source itself is patched")
    megatron_patch.uninstall()
    yield
    request.config.stash[LEFT_UNPATCHED] = request.path


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    left = item.config.stash.get(LEFT_UNPATCHED, None)
    again = "unpatched" in getattr(item, "fixturenames", ()) and item.path == left
    if left is not None and not again:
        megatron_patch.install()
        item.config.stash[LEFT_UNPATCHED] = None


@pytest.fixture
def opted_in_by_default(request: pytest.FixtureRequest) -> None:
    """Have the patch that ``opted_in`` selects on, unless MEGATRON_PATCH says which are on."""
    if "MEGATRON_PATCH" not in os.environ:
        request.getfixturevalue("opted_in")


@pytest.fixture
def cuda_device(device: Any) -> Any:
    """The CUDA device; skips the test where there is none."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    return device
