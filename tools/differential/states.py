"""A Mamba layer that nothing runs, by whose states it is told which tokens they have seen.

The context of a hybrid model has a state for each request, which it allocates, caches and restores.
Here a model of attention has such a context. In place of the layer, each forward pass takes the
tokens of a request into its state, one after the other, so that a state says of which tokens, in
which order, it came. Before that it has to be the state of all tokens before those of the pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from megatron_patch import testing
from megatron_patch.testing.releases import context_parameters, inference_config_class

from .observing import Forward

#: Of the states of one request; small, so that they take next to nothing from the KV blocks.
CONV_SHAPE, SSM_SHAPE = (1, 4), (1, 1, 1)
BYTES = 4 * (4 + 1)

PRIME = 65521
"""Numbers below it times 31 are exact in float32."""


def options(layers: int, slots: int, steps: int | None) -> dict[str, Any]:
    """Options of a context for so many layers of attention and one of Mamba.

    Args:
        slots: states that the prefix cache has room for.
        steps: blocks of the tokens of one step. None: there is no prefix cache.
    """
    owner: Any = inspect.getmodule(inference_config_class() or testing.context_class())
    config = owner.MambaInferenceStateConfig
    import torch

    dtypes = [name for name in inspect.signature(config).parameters if name.endswith("dtype")]
    kinds = dict.fromkeys(dtypes, torch.float32)
    found: dict[str, Any] = {
        "mamba_inference_state_config": config([*"*" * layers, "M"], CONV_SHAPE, SSM_SHAPE, **kinds)
    }
    if slots and steps is not None and "prefix_caching_mamba_gb" in context_parameters():
        # From 0.19 on, the states of one step are a part of the cache.
        allocate = testing.context_class()._allocate_mamba_cache
        scratch = steps if "scratch" in inspect.getsource(allocate) else 0
        found["prefix_caching_mamba_gb"] = (slots + scratch + 0.5) * BYTES / 1024**3
    return found


def after(state: int, tokens: Iterable[int]) -> int:
    """The state after these tokens."""
    for token in tokens:
        state = (31 * state + token + 1) % PRIME
    return state


class Layer:
    """In place of the layer."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], list[int]] = {}
        """Of parts of requests, their tokens so far."""

    def run(
        self, context: Any, forward: Forward, tokens: Sequence[int], prompts: Sequence[Any]
    ) -> list[tuple[int, int, int]]:
        """Take the tokens of a forward pass into the states.

        Args:
            tokens: of all its requests.
            prompts: of each of them, from which cached tokens are known.

        Returns:
            Of each state that is not that of the tokens before: its request, the part, and how many
            tokens those are.
        """
        wrong, first, begin = [], context.paused_request_count, 0
        for row, (index, part, offset, count) in enumerate(forward.rows):
            seen = self._seen.setdefault((index, part), [])
            if offset > len(seen):
                seen[:] = [*seen, *prompts[row][len(seen) : offset]]
            slot = int(context.mamba_metadata.request_to_mamba_state_idx[first + row])
            right = after(0, seen[:offset])
            new = tokens[begin : begin + count]
            for name in ("ssm", "conv"):
                states = getattr(context, f"mamba_{name}_states")
                if not bool((states[:, slot] == right).all()):
                    wrong.append((index, part, offset))
                before = int(states[0, slot].flatten()[0])
                states[:, slot] = after(before, new)
                # Of each draft, to go back to where it is not accepted.
                of_drafts = getattr(context, f"mamba_intermediate_{name}_states", None)
                if of_drafts is not None and count <= of_drafts.shape[2]:
                    for place in range(count):
                        of_drafts[:, slot, place] = after(before, new[: place + 1])
            seen[offset:] = new
            begin += count
        return wrong
