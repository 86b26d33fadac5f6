"""Serve requests of which the engine may refuse some, or never end one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from megatron_patch import testing
from megatron_patch.testing.decoding import add_request, has_work, stepper
from megatron_patch.testing.event_loop import settle
from megatron_patch.testing.releases import context_parameters, engine_class, parameters_of


class Served(NamedTuple):
    """What became of one request."""

    status: str
    tokens: tuple[int, ...]
    errors: tuple[str, ...]
    """The types of the errors among its events."""


def of_future(future: Any) -> Served | None:
    """What became of a request, or None if it is not answered."""
    if not future.done():
        return None
    record = future.result()
    # Older engines have no records, and 0.14 no events.
    parts = getattr(record, "requests", [record])
    events = [event for part in parts for event in getattr(part, "events", ())]
    return Served(
        parts[-1].status.name,
        tuple(token for part in parts for token in part.generated_tokens),
        tuple(type(event.payload).__name__ for event in events if event.payload is not None),
    )


def serve(
    engine: Any, requests: Sequence[testing.Request], *, max_steps: int = 300
) -> list[Served | None]:
    """Add all ``requests`` now, and step until there is nothing to do, or ``max_steps`` are made.

    A request that ``add_request()`` raises for has a status of its own: RAISED.
    """
    found: list[Any] = []
    for request in requests:
        try:
            found.append(add_request(engine, request, {}))
        except Exception as error:
            found.append(Served("RAISED", (), (type(error).__name__,)))
    make_step = stepper(engine, {})
    for _ in range(max_steps):
        if not has_work(engine):
            break
        make_step()
    settle(engine._loop)
    return [item if isinstance(item, Served) else of_future(item) for item in found]


def gigabytes(blocks: int, spec: testing.EngineSpec) -> float:
    """GiB of so many KV blocks of a float32 model."""
    numbers = 2 * spec.num_layers * spec.block_size_tokens * spec.hidden_size
    return blocks * numbers * 4 / 2**30


def spec_of(blocks: int, *, paused: int | None = None, **fields: Any) -> testing.EngineSpec:
    """An engine with so many KV blocks, that for padding included, which does not split prompts."""
    sizes = testing.EngineSpec()
    fields = {"max_tokens": 128, **fields}
    if {*parameters_of(engine_class()), *context_parameters()} & {
        "max_requests",
        "max_requests_override",
    }:
        fields.setdefault("max_requests", 4)
    if {*parameters_of(engine_class()), *context_parameters()} & {"enable_chunked_prefill"}:
        fields.setdefault("enable_chunked_prefill", False)
    if paused is not None:
        fields["options"] = {
            **fields.get("options", {}),
            "paused_buffer_size_gb": gigabytes(paused, sizes),
        }
    return testing.EngineSpec(buffer_size_gb=gigabytes(blocks, sizes), **fields)


def has_paused_buffer() -> bool:
    """Whether the release has blocks for paused requests, from which it evicts."""
    return "paused_buffer_size_gb" in context_parameters()
