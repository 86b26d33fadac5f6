"""What sampling draws, and what it has to draw from: the model's logits by top-k, then top-p.

Megatron draws with ``torch.multinomial()``. Each of its calls is noted while the engine is in a
step: the probabilities that it was given, and the tokens that it drew. What a request has to be
drawn from follows from its own parameters and from the logits that the model returned for it, by
the definition of the filters. So it does not matter how a release sorts requests into buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from torch import Tensor

Sampling = tuple[float, int, float]
"""Temperature, top-k and top-p."""

EXACT = 1e-5
"""By how much a probability may be off: the same logits are divided and summed in another order."""

UNLIKELY = 60.0
"""A token whose logit is so much below another one, divided by the temperature, is never drawn."""


@dataclass(frozen=True)
class Draw:
    """One call of ``torch.multinomial()``."""

    passes: int
    """How many forward passes there had been."""
    probabilities: Tensor
    """(rows, vocabulary)"""
    tokens: Sequence[int]
    state: bytes
    """State of the generator before the call."""


@contextmanager
def noted(draws: list[Draw], passes: Callable[[], int | None]) -> Iterator[None]:
    """Add each draw of the ``with`` block to ``draws``.

    ``passes`` gives :attr:`Draw.passes`, or None where a draw is not to be noted. The draws
    themselves are what they would be anyway. On a GPU, what cannot be drawn from is the exception
    that it is on a CPU, and not an assertion of the kernel, which would end the process.
    """
    import torch

    original: Callable[..., Any] = torch.multinomial

    def multinomial(probabilities: Tensor, *args: Any, **kwargs: Any) -> Any:
        number = passes()
        if number is None:
            return original(probabilities, *args, **kwargs)
        _check(probabilities)
        generator = kwargs.get("generator") or default_generator(probabilities.device)
        state = generator.get_state().numpy(force=True).tobytes()
        given = probabilities.detach().clone()
        drawn = original(probabilities, *args, **kwargs)
        draws.append(Draw(number, given, drawn.flatten().tolist(), state))
        return drawn

    with mock.patch.object(torch, "multinomial", multinomial):
        yield


def _check(probabilities: Tensor) -> None:
    """Raise RuntimeError for what a kernel of a GPU would assert, in the words of a CPU."""
    if probabilities.device.type == "cpu":
        return
    if not bool(((probabilities >= 0) & (probabilities < float("inf"))).all()):  # NaN is neither
        raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
    if not bool((probabilities.sum(-1) > 0).all()):
        raise RuntimeError("invalid multinomial distribution (sum of probabilities <= 0)")


def default_generator(device: Any) -> Any:
    """PyTorch's own generator of random numbers for a device."""
    import torch

    if device.type != "cuda":
        return torch.default_generator
    return torch.cuda.default_generators[device.index or 0]


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution to draw from with these parameters, by the definition of the filters.

    ``logits``: (vocabulary,), float32. Top-k comes first; what it leaves is normalised to 1 before
    top-p, which keeps the most likely tokens until together they have a probability of ``top_p``,
    the token with which they reach it included.
    """
    import torch

    temperature, top_k, top_p = sampling
    if temperature == 0 or top_k == 1:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).to(logits.dtype)
    # Less the greatest logit, which changes no probability, so that none becomes infinite.
    scaled = (logits.double() - logits.double().max()) / temperature
    if 0 < top_k < len(scaled):
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[-1], float("-inf"))
    found = scaled.softmax(-1)
    if 0 < top_p < 1:
        likely, order = found.sort(descending=True)
        before = likely.cumsum(-1) - likely
        likely[before > top_p] = 0
        found = torch.zeros_like(found).scatter(0, order, likely / likely.sum())
    return found.to(logits.dtype)


def drew(draws: Sequence[Draw], right: Tensor, token: int) -> bool:
    """Whether one of the draws was from these probabilities, and drew this token."""
    return any(
        drawn == token and bool(((row - right).abs() <= EXACT).all())
        for draw in draws
        if draw.probabilities.shape[-1] == len(right)
        for row, drawn in zip(draw.probabilities, draw.tokens, strict=True)
    )


def allows(logits: Tensor, sampling: Sampling, token: int, tolerance: float) -> bool:
    """Whether the token may be drawn, if each logit can be off by so much."""
    temperature, top_k, top_p = sampling
    if temperature == 0 or top_k == 1:
        return float(logits[token]) >= float(logits.max()) - tolerance
    if float(logits.max() - logits[token]) - tolerance > UNLIKELY * temperature:
        return False
    if 0 < top_k < len(logits) and float(logits[token]) < logits.topk(top_k).values[-1] - tolerance:
        return False
    if not 0 < top_p < 1:
        return True
    rest = probabilities(logits, (temperature, top_k, 0.0))
    surely_more_likely = logits > logits[token] + tolerance
    off = 2 * tolerance / temperature
    return float(rest[surely_more_likely].sum()) <= top_p + off


def repeated(draws: Sequence[Draw]) -> bool:
    """Whether random numbers were used a second time."""
    states = [draw.state for draw in draws if len(draw.tokens)]
    return len(set(states)) < len(states)
