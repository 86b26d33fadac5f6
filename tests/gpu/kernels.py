"""Which specs the attention kernels of this process take, and whether they round."""

from __future__ import annotations

from typing import Any

from megatron_patch import testing
from megatron_patch.testing.runtime import running


def rounds_to_bfloat16() -> bool:
    """Whether attention is that of flash-attn, which takes no float32."""
    return running().real_flash_attention


def spec_of(**fields: Any) -> testing.EngineSpec:
    """The spec; with flash-attn, one that it takes, with heads of 64 and blocks of 256 tokens."""
    if rounds_to_bfloat16():
        fields |= {"dtype": "bfloat16", "hidden_size": 256, "block_size_tokens": 256}
    return testing.EngineSpec(**fields)
