"""Say which attention an engine calls, whatever is installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from unittest import mock

ATTENTION = "megatron.core.transformer.attention"

#: What Megatron's attention calls in its dynamic engine, of each generation of flash-attn.
FUNCTIONS = (
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "flash_attn3_with_kvcache",
    "_flash_attn_forward",
    "flash_attn4_varlen_func",
    "flash_mla_with_kvcache",
)

STAND_IN = "stand-in of megatron_patch.testing"

DISTRIBUTIONS = {
    "flash_attn": "flash-attn",
    "flash_attn_3": "flash-attn-3",
    "flashattn_hopper": "flashattn-hopper",
    "flash_attn.cute": "flash-attn-4",
    "flash_mla": "flash-mla",
}


@contextmanager
def recorded() -> Iterator[set[str]]:
    """Yield a set, to which each attention that is called within the block adds its name.

    A CUDA graph that is replayed calls nothing: build the engine in the block too, because that is
    when it captures its graphs.
    """
    module = importlib.import_module(ATTENTION)
    called: set[str] = set()
    with ExitStack() as stack:
        for name in FUNCTIONS:
            function = vars(module).get(name)
            if callable(function):
                stack.enter_context(mock.patch.object(module, name, _noting(function, called)))
        yield called


def _noting(function: Any, called: set[str]) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        called.add(name_of(function))
        return function(*arguments, **named)

    return call


def name_of(function: Any) -> str:
    """Where ``function`` is from, with the version: ``flash-attn 2.8.3``."""
    module = str(getattr(function, "__module__", None) or "?")
    if module.startswith("megatron_patch.testing"):
        return STAND_IN
    for package in sorted(DISTRIBUTIONS, key=len, reverse=True):
        if module == package or module.startswith(f"{package}."):
            return f"{DISTRIBUTIONS[package]} {_version(package)}"
    return module


def _version(package: str) -> str:
    named = getattr(sys.modules.get(package), "__version__", None)
    if isinstance(named, str) and package != "flash_attn.cute":
        return named
    try:
        return version(DISTRIBUTIONS[package])
    except PackageNotFoundError:
        return "of unknown version"


def summary(called: set[str]) -> str:
    """What was called, for a table; more than one is worth a look."""
    return " and ".join(sorted(called)) or "none"


def kernels(names: Iterator[str]) -> list[str]:
    """Of the names of GPU kernels, those of attention, without their template arguments; sorted."""
    words = ("flash", "fmha", "attention")
    found = {name.removeprefix("void ").split("<")[0].split("(")[0] for name in names}
    return sorted(name for name in found if any(word in name.lower() for word in words))
