"""Log probs of a model alone, without engine and KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megatron_patch.testing.releases import set_inference_mode


def of(
    model: Any, prompt: Sequence[int], generated: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Log probs of all tokens of the prompt but the first, and of the generated tokens."""
    device = next(model.parameters()).device
    tokens = torch.tensor([[*prompt, *generated]], device=device)
    positions = torch.arange(tokens.shape[1], device=device)
    hidden = positions[:, None] < positions
    before = set_inference_mode(False)  # an engine may have switched it on
    try:
        with torch.inference_mode():
            logits = model(tokens, positions[None], hidden[None, None])[0]
    finally:
        set_inference_mode(before)
    found = logits.float().log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])[:, 0].tolist()
    return found[: len(prompt) - 1], found[len(prompt) - 1 :]
