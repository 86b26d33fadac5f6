"""Engines that split prompts, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_patch import testing


def spec(**fields: Any) -> testing.EngineSpec:
    return testing.EngineSpec(
        **{
            "materialize_only_last_token_logits": False,
            "enable_chunked_prefill": True,
            "max_sequence_length": 256,
            **fields,
        }
    )


def parts(engine: Any, requests: Sequence[testing.Request], **sampling: Any) -> list[Any]:
    """The engine's records, one part each."""
    sampling = {"return_log_probs": True, **sampling}
    decoded = testing.decode(engine, requests, capture_logits=False, sampling=sampling)
    # Older engines have no records, which is what a request comes back in.
    return [getattr(record, "requests", [record])[-1] for record in decoded.records]
