"""What the attention of this process takes: flash-attn's kernels, or their stand-in.

The stand-in takes every configuration. flash-attn takes no float32, KV blocks of a multiple of 256
tokens only and no latents, and may have been built without windows. So a configuration is drawn for
the stand-in, and made one of flash-attn's afterwards, in which what happens happens to as many
blocks as before.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

from megatron_patch.testing.runtime import running

from .configuration import Configuration, Plan

BLOCK = 256
"""Tokens of a block."""


def are_real() -> bool:
    """Whether attention is that of flash-attn."""
    return running().real_flash_attention


@cache
def have_windows() -> bool:
    """Whether attention can be to a few tokens before alone."""
    if not are_real():
        return True
    import torch

    attend: Any = import_module("flash_attn").flash_attn_varlen_func
    tokens = torch.zeros(8, 1, 64, dtype=torch.bfloat16, device=running().device)
    starts = torch.tensor([0, 8], dtype=torch.int32, device=running().device)
    arguments: dict[str, Any] = {"causal": True, "window_size": (3, 0)}
    try:
        attend(tokens, tokens, tokens, starts, starts, 8, 8, **arguments)
    except RuntimeError:  # built without
        return False
    return True


def stretched(configuration: Configuration) -> Configuration:
    """The configuration in bfloat16 and with flash-attn's blocks.

    Each prompt has as many blocks as before, and as many tokens are left in its last one. So what
    is generated comes to the next block at the same place, and prompts that shared blocks share
    them still.
    """
    size = configuration.block_size
    factor = BLOCK // size
    return replace(
        configuration,
        dtype="bfloat16",
        block_size=BLOCK,
        max_tokens=configuration.max_tokens * factor,
        longest=configuration.longest * factor,
        requests=tuple(
            _stretched(plan, size, factor, configuration.longest) for plan in configuration.requests
        ),
    )


def _stretched(plan: Plan, size: int, factor: int, longest: int) -> Plan:
    blocks = -(-plan.length // size)
    length = blocks * BLOCK - (blocks * size - plan.length)
    num_tokens = plan.num_tokens
    if plan.is_too_long(longest) and num_tokens >= 0 and plan.length <= longest:
        # It asks for as many tokens too many as before.
        num_tokens = longest * factor - length + (plan.length + num_tokens - longest)
    return replace(plan, length=length, num_tokens=num_tokens, times=factor)
