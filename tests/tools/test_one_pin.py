"""What ``--one-pin-a-variant`` leaves out on a pin runs on another one."""

from __future__ import annotations

import pytest

from megatron_patch.backports import SERIES

from ..one_pin import pins, pins_alike


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
