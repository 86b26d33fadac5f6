"""What ``--one-pin-a-variant`` leaves out on a pin runs on another one."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.version import Version

from megatron_patch.backports import SERIES

from .. import one_pin
from ..one_pin import left, patches_of, pins, pins_alike

BACKPORTS = Path(__file__).parents[1] / "backports"
IDS = {patch.id for patch in SERIES}


@pytest.mark.parametrize("patch", SERIES, ids=lambda patch: patch.id)
def test_the_newest_of_pins_that_are_alike_leaves_out_nothing(patch):
    for pin in pins():
        alike = pins_alike(patch.id, pin)
        assert not alike or pin in alike
        newest = max(alike, default=pin)
        assert max(pins_alike(patch.id, newest), default=newest) == newest


def test_a_variant_of_its_own_is_left_to_no_other_pin():
    """For each variant, and for source that needs none, the newest such pin runs the tests."""
    for patch in SERIES:
        hosts = {max(pins_alike(patch.id, pin), default=pin) for pin in pins()}
        assert max(pins()) in hosts
    several = [p for p in SERIES if len({frozenset(pins_alike(p.id, pin)) for pin in pins()}) > 2]
    assert len(several) > 10


class Item(SimpleNamespace):
    """What is asked of a collected test."""

    __hash__ = object.__hash__


def about(file: Path, *markers: pytest.MarkDecorator) -> tuple[str, ...]:
    """The patches of a test in ``file`` with ``markers``."""
    marks = {marker.name: marker.mark for marker in markers}
    item = Item(path=file, get_closest_marker=marks.get)
    return patches_of(item)  # type: ignore[arg-type]


def test_a_test_is_about_the_patches_of_its_marker_or_of_its_file():
    file = BACKPORTS / "test_step_log_sync.py"
    assert about(file) == ("step-log-sync",)
    assert about(file, pytest.mark.about("one", "another"), pytest.mark.proof) == ("one", "another")


def test_each_file_says_what_its_tests_are_about():
    """Where none does, its tests run on each pin."""
    for file in BACKPORTS.glob("test_*.py"):
        named = re.findall(r"mark\.about\(([^)]*)\)", file.read_text(encoding="utf-8"))
        ids = {id for arguments in named for id in re.findall(r'"([\w-]+)"', arguments)}
        assert ids <= IDS, file
        assert ids or {*about(file)} <= IDS or file.name == "test_proofs.py", file


def test_of_the_proofs_the_first_and_the_last_case_stay(monkeypatch):
    def item(name: str, *markers: pytest.MarkDecorator) -> Item:
        marks = {marker.name: marker.mark for marker in markers}
        file = BACKPORTS / "test_step_log_sync.py"
        return Item(nodeid=f"{file}::{name}", path=file, get_closest_marker=marks.get)

    proofs = [item(f"test_a[{case}]", pytest.mark.proof) for case in range(4)]
    alone, other = item("test_b", pytest.mark.proof), item("test_c[0]")
    items = [*proofs, alone, other]
    old, newest = Version("0.17.1"), Version("0.18.2")
    monkeypatch.setattr(one_pin, "pins_alike", lambda id, pin: {old, newest})
    monkeypatch.setattr(one_pin, "_here", lambda: old)
    assert left(items) == [*proofs[1:-1], other]
    monkeypatch.setattr(one_pin, "_here", lambda: newest)
    assert left(items) == []
