"""The modules of Mamba layers, which 0.16 and older releases import Triton for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from types import ModuleType

from megatron_patch.model import MAMBA
from megatron_patch.testing import module_standins


def import_mamba(name: str) -> ModuleType:
    """Import a module of Mamba layers. Without Triton its kernels are there, and cannot run."""
    if importlib.util.find_spec("triton") is not None:
        return importlib.import_module(name)
    language = module_standins.module("triton.language", None, {"constexpr": int})
    contents = {"language": language, "jit": lambda kernel: kernel}
    triton = module_standins.module("triton", None, contents)
    with module_standins.importable({"triton": triton, "triton.language": language}):
        return importlib.import_module(name)


def import_all(names: Iterable[str]) -> None:
    """Import modules, those of Mamba layers last: the others get no stand-in for Triton."""
    for name in sorted(names, key=lambda name: (name.startswith(MAMBA), name)):
        (import_mamba if name.startswith(MAMBA) else importlib.import_module)(name)
