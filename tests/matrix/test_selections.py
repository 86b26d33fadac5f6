"""A selection that is put in force is the one that `install()` makes."""

from __future__ import annotations

import pytest

import megatron_patch
from tools.differential import selections
from tools.differential.selections import ALL, CORRECTNESS, NONE, PERFORMANCE, Selections


@pytest.fixture(scope="module")
def found(device):
    made = Selections()
    yield made
    made.close()


def changed(released, now):
    return {key for key in {*released, *now} if released.get(key) is not now.get(key)}


@pytest.mark.parametrize("selection", [PERFORMANCE, CORRECTNESS, ALL])
def test_the_same_is_changed_as_by_installing(found, selection):
    applied = found.applied(selection)
    assert applied
    released = selections._namespaces()
    with found.force(selection):
        forced = changed(released, selections._namespaces())
    with found.anew(selection):
        installed = changed(released, selections._namespaces())
    functions_of_its_own = {key for key in installed ^ forced if key[1] == "__code__"}
    assert forced ^ installed == functions_of_its_own
    assert forced
    assert not changed(released, selections._namespaces()) - functions_of_its_own


def test_nothing_is_changed_by_none(found):
    assert found.applied(NONE) == []
    released = selections._namespaces()
    with found.force(NONE):
        assert not changed(released, selections._namespaces())


def test_patches_can_be_narrowed(device):
    one = Selections("tensor-parallel-without-autograd")
    assert one.applied(ALL) == one.applied(PERFORMANCE) == ["tensor-parallel-without-autograd"]
    assert one.applied(CORRECTNESS) == []
    one.close()
    assert {str(entry.state) for entry in megatron_patch.status()} >= {"applied"}
