"""What a model alone answers: the measure of what an engine decodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .releases import set_inference_mode
from .runtime import running

if TYPE_CHECKING:
    from .decoding import Request


def reference_decode(
    model: Any,
    requests: Sequence[Request],
    likely: Sequence[Sequence[int] | None] | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Greedy tokens of ``model`` alone: without engine, context, KV cache or flash-attn.

    Each token comes from a forward pass over the whole sequence before it, one request at a time.
    Slow, and the measure of what :func:`~.decoding.decode` returns: in float32 the tokens are the
    same.

    Args:
        model: of :func:`~megatron_patch.testing.build_model`.
        likely: tokens of each request that are probably those which this function returns, such as
            those of an engine. It returns the same without them, but sooner with them: as no token
            sees those after it, one forward pass tells the next token after each of them, and all
            count up to the first that is another one.
    """
    import torch

    if likely is None:
        likely = [None] * len(requests)
    before = set_inference_mode(False)  # an engine may have switched it on
    try:
        with torch.inference_mode():
            return tuple(
                _reference(model, request, tokens or ())
                for request, tokens in zip(requests, likely, strict=True)
            )
    finally:
        set_inference_mode(before)


def _reference(model: Any, request: Request, likely: Sequence[int]) -> tuple[int, ...]:
    import torch

    device = running().device
    found: list[int] = []
    while len(found) < request.num_tokens:
        ahead = likely[len(found) : request.num_tokens - 1]
        tokens = [*request.prompt, *found, *ahead]
        input_ids = torch.tensor([tokens], device=device)
        position_ids = torch.arange(len(tokens), device=device)[None]
        hidden = torch.ones(len(tokens), len(tokens), dtype=torch.bool, device=device).triu(1)
        logits = model(input_ids, position_ids, hidden[None, None], runtime_gather_output=True)
        choices = logits[0, -1 - len(ahead) :].argmax(-1).tolist()
        right = [one == other for one, other in zip(choices, ahead, strict=False)]
        found += choices[: [*right, False].index(False) + 1]
    return tuple(found)
