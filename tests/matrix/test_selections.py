"""A selection that is put in force is the one that `install()` makes."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import FunctionType

import pytest
from packaging.specifiers import SpecifierSet

import megatron_patch
from megatron_patch.backports import SERIES
from megatron_patch.model import MAMBA
from tools.differential.selections import ALL, CORRECTNESS, NONE, PERFORMANCE, Selections

from ..conftest import RELEASE


@pytest.fixture(scope="module")
def found(device):
    made = Selections()
    yield made
    made.close()


def functions_below(value):
    """The functions in an attribute, through descriptors and decorators."""
    if type(value) in (staticmethod, classmethod):
        value = value.__func__
    elif type(value) is property:
        value = value.fget
    while type(value) is FunctionType:
        yield value
        value = vars(value).get("__wrapped__")


def namespaces():
    """The attributes of Megatron's modules and of their classes, and the code of its functions."""
    found = {}
    seen = set()

    def add(owner):
        seen.add(id(owner))
        kept.append(owner)
        for name, value in list(vars(owner).items()):
            found[id(owner), name] = value
            for function in functions_below(value):
                kept.append(function)
                found[id(function), "__code__"] = function.__code__
            of_megatron = isinstance(value, type) and value.__module__.startswith("megatron.")
            if of_megatron and id(value) not in seen:
                add(value)

    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.") and module is not None:
            add(module)
    return found


#: Kept alive, so that no two objects have the same identity.
kept: list[object] = []


def changed(released, now):
    return {key for key in {*released, *now} if released.get(key) is not now.get(key)}


@pytest.mark.parametrize("selection", [PERFORMANCE, CORRECTNESS, ALL])
def test_the_same_is_changed_as_by_installing(found, selection):
    applied = found.applied(selection)
    assert applied
    released = namespaces()
    with found.force(selection):
        forced = changed(released, namespaces())
    with found.anew(selection):
        installed = changed(released, namespaces())
    functions_of_its_own = {key for key in installed ^ forced if key[1] == "__code__"}
    assert forced ^ installed == functions_of_its_own
    assert forced
    assert not changed(released, namespaces()) - functions_of_its_own


def test_the_matrix_has_each_patch_that_the_release_needs_and_that_is_on_by_default(found):
    needed = [
        patch
        for patch in SERIES
        if patch.default and RELEASE in SpecifierSet(patch.releases)
        # Without Triton, 0.16 has no Mamba layers.
        if find_spec("triton") or not patch.target.startswith(MAMBA)
    ]
    assert found.applied(ALL) == [patch.id for patch in needed]
    for selection in (PERFORMANCE, CORRECTNESS):
        assert found.applied(selection) == [p.id for p in needed if p.kind.value == selection]


def test_nothing_is_changed_by_none(found):
    assert found.applied(NONE) == []
    released = namespaces()
    with found.force(NONE):
        assert not changed(released, namespaces())


def test_patches_can_be_narrowed(device):
    one = Selections("tensor-parallel-without-autograd")
    assert one.applied(ALL) == one.applied(PERFORMANCE) == ["tensor-parallel-without-autograd"]
    assert one.applied(CORRECTNESS) == []
    one.close()
    assert {str(entry.state) for entry in megatron_patch.status()} >= {"applied"}
