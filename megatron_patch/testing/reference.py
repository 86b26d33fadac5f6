"""What a model alone answers: the measure of what an engine decodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .releases import set_inference_mode
from .runtime import running

if TYPE_CHECKING:
    from .decoding import Request


def reference_decode(model: Any, requests: Sequence[Request]) -> tuple[tuple[int, ...], ...]:
    """Greedy tokens of ``model`` alone: without engine, context, KV cache or flash-attn.

    Each token comes from a forward pass over the whole sequence before it, one request at a time.
    Slow, and the measure of what :func:`~.decoding.decode` returns: in float32 the tokens are the
    same.

    Args:
        model: of :func:`~megatron_patch.testing.build_model`.
    """
    import torch

    before = set_inference_mode(False)  # an engine may have switched it on
    try:
        with torch.inference_mode():
            return tuple(_reference(model, request) for request in requests)
    finally:
        set_inference_mode(before)


def _reference(model: Any, request: Request) -> tuple[int, ...]:
    import torch

    device = running().device
    tokens = list(request.prompt)
    for _ in range(request.num_tokens):
        input_ids = torch.tensor([tokens], device=device)
        position_ids = torch.arange(len(tokens), device=device)[None]
        hidden = torch.ones(len(tokens), len(tokens), dtype=torch.bool, device=device).triu(1)
        logits = model(input_ids, position_ids, hidden[None, None], runtime_gather_output=True)
        tokens.append(int(logits[0, -1].argmax()))
    return tuple(tokens[len(request.prompt) :])
