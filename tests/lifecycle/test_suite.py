"""What the suite demands of a subclass, so that an incomplete one does not pass for tested."""

from __future__ import annotations

import pytest

from .suite import RELEASE, Lifecycle

COMPLETE = {
    "patch_id": "sample",
    "kind": "performance",
    "targets": ("package.module:Class.method",),
    "states": {f"=={RELEASE}": "applied", f"!={RELEASE}": "upstreamed"},
    "thing": lambda self: object(),
    "improved": lambda self, thing: True,
}


def define(**changes: object) -> type[Lifecycle]:
    namespace = {k: v for k, v in {**COMPLETE, **changes}.items() if v is not None}
    return type("Sample", (Lifecycle,), namespace)


def test_a_complete_subclass_knows_its_state_on_this_release():
    assert define().expected == "applied"


@pytest.mark.parametrize("name", COMPLETE)
def test_a_subclass_without_a_hook_is_refused(name):
    with pytest.raises(TypeError, match=f"Sample does not define {name}"):
        define(**{name: None})


def test_a_subclass_that_replaces_a_case_is_refused():
    with pytest.raises(TypeError, match="Sample replaces test_installed_twice"):
        define(test_installed_twice=lambda self: None)


def test_a_subclass_without_targets_is_refused():
    with pytest.raises(TypeError, match="Sample names no targets"):
        define(targets=())


@pytest.mark.parametrize(
    "states", [{}, {f"<{RELEASE}": "applied"}, {">=0": "applied", f"=={RELEASE}": "upstreamed"}]
)
def test_a_subclass_without_one_state_for_this_release_is_refused(states):
    with pytest.raises(TypeError, match="expected one state"):
        define(states=states)
