"""Each patch has tests that show, on whichever source, whether that source needs the patch."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

import pytest

from megatron_patch.backports import SERIES
from megatron_patch.model import Patch


def module_of(patch: Patch) -> ModuleType:
    """The test module of the backport."""
    name = patch.id.replace("-", "_")
    return importlib.import_module(f"{__package__}.test_{name}")


def proofs(module: ModuleType) -> list[Any]:
    """The tests of the module that are marked `proof`."""
    return [
        function
        for name, function in vars(module).items()
        if name.startswith("test_")
        and any(mark.name == "proof" for mark in getattr(function, "pytestmark", ()))
    ]


@pytest.mark.parametrize("patch", SERIES, ids=lambda patch: patch.id)
def test_each_patch_has_proofs_that_ask_the_source_alone(patch):
    module = module_of(patch)
    found = proofs(module)
    assert found
    for function in found:
        assert not {mark.name for mark in function.pytestmark} & {"skipif", "skip", "xfail"}
        names = {*function.__code__.co_names, *inspect.signature(function).parameters}
        assert not {"RELEASE", "PATCHED", "unpatched", "install", "uninstall"} & names
