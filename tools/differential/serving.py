"""Which requests can never be served, by what an engine has room for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packaging.version import Version

from megatron_patch.testing.version import core_release

RELEASE = core_release()

#: A request for more tokens than a sequence has room for gets as many as there is room for.
CLAMPS = RELEASE >= Version("0.19")

#: A request has sampling parameters of its own, with which it can be refused.
OWN_PARAMETERS = RELEASE >= Version("0.16")

#: A request that grows may find no block left. In older releases enough are set aside for one
#: request.
MEASURES_GROWTH = RELEASE >= Version("0.16")


@dataclass(frozen=True)
class Room:
    """What an engine has for a request that is alone in it."""

    limits: Mapping[str, int]
    """As :func:`tools.differential.blocks.limits` returns them."""
    longest: int
    """Tokens of a sequence."""
    block_size: int
    chunked: bool = False
    drafts: int = 0
    """Tokens that are drafted for a request in a step."""

    def tokens(self, length: int, num_tokens: int) -> int:
        """How many tokens a request gets after a prompt of ``length``, unless something ends it."""
        return min(num_tokens, self.longest - length) if CLAMPS else num_tokens

    def refusal(
        self, length: int, num_tokens: int, sampling: tuple[float, int, float]
    ) -> str | None:
        """Why a request has to be refused, if it can never be served."""
        if OWN_PARAMETERS and not means_something(sampling):
            return f"no sampling is possible with {sampling}"
        if length == 0:
            return "there is no prompt"
        clamped = CLAMPS and num_tokens >= 0 and length <= self.longest
        if num_tokens < 0 or (length + num_tokens > self.longest and not clamped):
            return f"{length} tokens of a prompt and {num_tokens} after it are too many"
        if length > self.limits["tokens of a step"] and not self.chunked:
            return f"a prompt of {length} tokens is too long for a step"
        stored, wanted = length, self.tokens(length, num_tokens)
        if wanted > 1 and MEASURES_GROWTH:
            # The last token that is generated is not stored, but what is drafted after it is.
            stored += wanted - 1 + self.drafts
        of_prompt, need = (-(-count // self.block_size) for count in (length, stored))
        most = self.limits["blocks to grow" if need > of_prompt else "blocks of a prompt"]
        return f"it needs {need} blocks, and can have {most}" if need > most else None


def means_something(sampling: tuple[float, int, float]) -> bool:
    """Whether temperature, top-k and top-p can be sampled with."""
    temperature, top_k, top_p = sampling
    return 0 <= temperature < float("inf") and top_k >= -1 and 0 <= top_p <= 1


def is_greedy(sampling: tuple[float, int, float]) -> bool:
    """Whether only the most likely token can be drawn."""
    temperature, top_k, _ = sampling
    return means_something(sampling) and (top_k == 1 or temperature == 0)


def refusals() -> tuple[type[BaseException], ...]:
    """Exceptions by which ``add_request()`` refuses a request where it has no other way."""
    from megatron.core.inference.contexts import dynamic_context

    if hasattr(dynamic_context, "ChunkOverflowError"):  # 0.14
        return (dynamic_context.ContextOverflowError,)
    return ()
