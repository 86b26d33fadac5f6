"""What upstream's tests need and a machine perhaps lacks, stood in for alike with and without us.

Flash-attn is stood in for by `megatron_patch.testing`. Of Transformer Engine there is only the
question whether FP8 is supported, which test modules ask when they are imported; Megatron itself
finds no Transformer Engine, and its local layers where it would have those over it. Where there is
no GPU, parts of `torch.cuda` are stood in for too, and NCCL by gloo: enough to try things out.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from . import te_layers


def stand_in(stack: ExitStack) -> list[str]:
    """Stand in for what is missing until `stack` is closed; returns the names of it.

    To be called before Megatron is imported. Imports Megatron.
    """
    import torch

    from megatron_patch.testing import flash_attn_module

    missing = []
    if not torch.cuda.is_available():
        missing.append("cuda")
        _enter_cpu(stack)
    if "cuda" in missing or not _can_import("flash_attn"):
        missing.append("flash_attn")
        stack.enter_context(flash_attn_module.installed())
    if not _can_import("transformer_engine"):
        missing.append("transformer_engine.pytorch.fp8")
        _module(stack, "transformer_engine.pytorch.fp8", check_fp8_support=_no_fp8)
    if not _can_import("causal_conv1d"):
        # Some tests ask for its version before they skip.
        missing.append("causal_conv1d")
        _module(stack, "causal_conv1d", __version__="0.0.0")
    if "cuda" in missing and Path("megatron/core/inference/contexts/dynamic_context.py").is_file():
        from megatron_patch.testing import runtime

        stack.enter_context(runtime._without_triton())
    utils: Any = importlib.import_module("megatron.core.utils")
    if utils.get_te_version() is None:
        # In 0.16 the question whether it is at least some version raises where there is none.
        stack.enter_context(mock.patch.object(utils, "_te_version", utils.PkgVersion("0.0.0")))
    if te_layers.are_missing():
        missing.append("layers of transformer_engine")
        te_layers.install(stack)
    return missing


def _can_import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _module(stack: ExitStack, name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
    vars(module).update(contents)
    stack.enter_context(mock.patch.dict(sys.modules, {name: module}))


def _no_fp8() -> tuple[bool, str]:
    return False, "Transformer Engine is not installed"


def _enter_cpu(stack: ExitStack) -> None:
    import torch
    from torch import distributed

    from megatron_patch.testing import standins

    init = distributed.init_process_group

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return init("gloo" if backend == "nccl" else backend, *args, **kwargs)

    def set_state(state: Any, device: object = None) -> None:
        torch.set_rng_state(state)

    stack.enter_context(standins.installed())
    stack.enter_context(
        mock.patch.multiple(
            torch.cuda,
            is_available=lambda: True,
            # Some tests ask whether there is one for each of their ranks.
            device_count=lambda: int(os.environ.get("WORLD_SIZE", "1")),
            is_initialized=lambda: False,
            get_rng_state=lambda device=None: torch.get_rng_state(),
            set_rng_state=set_state,
            manual_seed=torch.manual_seed,
            mem_get_info=lambda device=None: (2**33, 2**33),
            memory_reserved=lambda device=None: 0,
            memory_allocated=lambda device=None: 0,
        )
    )
    stack.enter_context(mock.patch.object(distributed, "init_process_group", init_process_group))
