"""Engines that decode speculatively."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_patch import testing
from megatron_patch.testing.releases import (
    context_parameters,
    inference_config_class,
    parameters_of,
)

from .checks import needs


def spec(num_speculative_tokens: int, **fields: Any) -> testing.EngineSpec:
    return testing.EngineSpec(
        **{
            "num_speculative_tokens": num_speculative_tokens,
            "materialize_only_last_token_logits": False,
            **fields,
        }
    )


def needs_speculative_tokens() -> None:
    """Skip a proof on source without them."""
    needs("num_speculative_tokens" in context_parameters(), "speculative tokens")
    try:
        testing.build_model(spec(1))
    except TypeError as error:
        # Some commits of main look for a class of Transformer Engine, which need not be installed.
        if "isinstance()" not in str(error):
            raise
        pytest.skip("has no such feature: speculative tokens without Transformer Engine")


def schedulings() -> tuple[str | None, ...]:
    """The scheduling modes of the release; [None] if there is only one."""
    config = inference_config_class()
    if config is None or "async_sched_mode" not in parameters_of(config):
        return (None,)
    known = {mode.value for mode in type(config.async_sched_mode)}
    return tuple(mode for mode in ("legacy", "async") if mode in known)


def options_of(scheduling: str | None) -> dict[str, Any]:
    return {} if scheduling is None else {"async_sched_mode": scheduling}


def accept_all(engine: Any) -> None:
    """Make all tokens equally likely, so that drafts and samples are all token 0, and accepted."""
    torch.nn.init.zeros_(engine.controller.inference_wrapped_model.model.output_layer.weight)
