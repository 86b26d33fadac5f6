"""Decode requests with an engine, and see what it did."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .engines import is_suspended
from .event_loop import settle
from .releases import parameters_of, release, set_inference_mode
from .spec import UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Request:
    """Generate ``num_tokens`` tokens after ``prompt``, joining before step ``arrival_step``."""

    prompt: tuple[int, ...]
    num_tokens: int
    arrival_step: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields of ``SamplingParams``, as ``sampling`` of :func:`decode`, for this request alone. From
    0.16 on."""


@dataclass(frozen=True)
class Decoded:
    """What :func:`decode` got from the engine."""

    tokens: tuple[tuple[int, ...], ...]
    """Generated tokens of each request, in the order in which the requests were given."""
    logits: tuple[Tensor, ...]
    """What the model returned in each step, (1, rows, vocab_size) in the model's dtype, on its
    device. Rows for padding come last and mean nothing. Empty without ``capture_logits``."""
    steps: int
    """Steps that the engine made."""
    step_seconds: tuple[float, ...]
    """Wall-clock time of each step; on a CPU it includes the stand-ins."""
    records: tuple[Any, ...]
    """The engine's own account of each request: a ``DynamicInferenceRequest``, or from 0.16 on a
    ``DynamicInferenceRequestRecord``."""


def decode(
    engine: Any,
    requests: Sequence[Request],
    *,
    on_step: Callable[[Any, int], None] | None = None,
    capture_logits: bool = True,
    max_steps: int | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Decoded:
    """Run ``requests`` through ``engine``, which is idle, until each has its tokens.

    Decoding is greedy, unless ``sampling`` says otherwise.

    Args:
        engine: built by :func:`~megatron_patch.testing.build_engine`. Can be used again afterwards.
        on_step: called with the engine and the number of the step before each step, after the
            requests of that step were added. It may suspend and resume the engine. While the
            engine is suspended or has nothing to do, steps are counted but not made.
        capture_logits: keep a copy of the model's output in each step.
        max_steps: steps to wait for all requests to end. None: more than they can need.
        sampling: further fields of the release's ``SamplingParams``, such as ``return_log_probs``.

    Raises:
        ValueError: a request that the engine cannot take.
        UnsupportedError: the release's ``SamplingParams`` has no such field.
        RuntimeError: the engine failed a request, or did not end within ``max_steps``.
    """
    for request in requests:
        _check(engine, request)
    if max_steps is None:
        last_arrival = max((request.arrival_step for request in requests), default=0)
        work = sum(len(request.prompt) + request.num_tokens for request in requests)
        max_steps = last_arrival + 2 * work + 16

    futures: dict[int, Any] = {}
    step_seconds: list[float] = []
    make_step = stepper(engine, sampling or {})
    if not is_suspended(engine):
        set_inference_mode(True)  # the suspension of another engine switches it off for all
    with _ModelOutputs(engine, capture_logits) as outputs:
        step = 0
        while len(futures) < len(requests) or not all(map(_is_done, futures.values())):
            if step == max_steps:
                raise RuntimeError(_unfinished(engine, requests, futures, max_steps))
            for index, request in enumerate(requests):
                if request.arrival_step == step:
                    futures[index] = add_request(engine, request, sampling or {})
            if on_step is not None:
                on_step(engine, step)
            if not is_suspended(engine) and has_work(engine):
                begin = time.perf_counter()
                make_step()
                step_seconds.append(time.perf_counter() - begin)
            step += 1
    settle(engine._loop)
    records = tuple(futures[index].result() for index in range(len(requests)))
    for request, record in zip(requests, records, strict=True):
        last = _segments(record)[-1]
        if last.status.name == "FAILED":
            raise RuntimeError(f"the engine failed {request}: {last.events}")
    return Decoded(
        tokens=tuple(_generated(record) for record in records),
        logits=tuple(outputs.captured),
        steps=len(step_seconds),
        step_seconds=tuple(step_seconds),
        records=records,
    )


class _ModelOutputs:
    """Copies what the engine's model returns. Adds a hook to the model and takes it away again."""

    def __init__(self, engine: Any, enabled: bool) -> None:
        self.captured: list[Tensor] = []
        self._model = engine.controller.inference_wrapped_model.model
        self._enabled = enabled
        self._handle: Any = None

    def __enter__(self) -> _ModelOutputs:
        if self._enabled:
            self._handle = self._model.register_forward_hook(self._capture)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _capture(self, module: Any, args: Any, output: Any) -> None:
        self.captured.append(output.detach().clone())


def _check(engine: Any, request: Request) -> None:
    context = engine.context
    length = len(request.prompt) + request.num_tokens
    if not request.prompt or request.num_tokens < 0 or request.arrival_step < 0:
        raise ValueError(f"a request needs a prompt and no negative number: {request}")
    if length > context.max_sequence_length:
        raise ValueError(
            f"a request of {length} tokens is over max_sequence_length "
            f"{context.max_sequence_length} of the engine: {request}"
        )
    chunked = getattr(engine, "enable_chunked_prefill", False)
    if len(request.prompt) > context.max_tokens and not chunked:
        raise ValueError(
            f"a prompt of {len(request.prompt)} tokens is over max_tokens {context.max_tokens}, "
            f"and the engine does not split prompts: {request}"
        )


def _sampling_params(request: Request, sampling: Mapping[str, Any]) -> Any:
    from megatron.core.inference.sampling_params import SamplingParams

    known = parameters_of(SamplingParams)
    for name in sampling:
        if name not in known:
            raise UnsupportedError(f"{release()} has no sampling parameter {name!r}")
    arguments = {"num_tokens_to_generate": request.num_tokens, "top_k": 1, **sampling}
    if "termination_id" in known:
        arguments.setdefault("termination_id", -1)
    return SamplingParams(**arguments)


def add_request(engine: Any, request: Request, sampling: Mapping[str, Any]) -> Any:
    """Add ``request`` to the engine now, whatever its ``arrival_step``; returns the future of its
    record. ``sampling`` are fields of ``SamplingParams``, as for :func:`decode`.

    Raises:
        UnsupportedError: the release lacks a sampling parameter, or has none for a single request.
    """
    request_id = int(next(engine.request_counter))
    if "sampling_params" in parameters_of(engine.add_request):
        own = {**sampling, **request.sampling}
        arguments = {"sampling_params": _sampling_params(request, own)}
    elif request.sampling:
        raise UnsupportedError(
            f"{release()} has no sampling parameters for a single request; give them to all"
        )
    else:
        arguments = {"num_tokens_to_generate": request.num_tokens}

    async def add() -> Any:
        # Within the event loop, because some releases make a future of the running one. It must
        # not be awaited here: the return value of an async function is not, only its result is.
        return [engine.add_request(request_id, list(request.prompt), **arguments)]

    return engine._loop.run_until_complete(add())[0]


def stepper(engine: Any, sampling: Mapping[str, Any]) -> Callable[[], object]:
    """A function that makes one step, and as little as possible beside it: steps are timed."""
    step: Callable[..., object] = getattr(engine, "step_modern", None) or engine.step
    if "sampling_params" not in parameters_of(step):
        return step
    # The same for all requests; the engine does not read the number of tokens from it.
    parameters = _sampling_params(Request(prompt=(), num_tokens=0), sampling)
    return functools.partial(step, parameters)


def has_work(engine: Any) -> bool:
    """Whether a step of ``engine`` would do anything."""
    return bool(engine.has_unfinished_requests() or getattr(engine, "failed_request_ids", ()))


def _is_done(future: Any) -> bool:
    return bool(future.done())


def _segments(record: Any) -> Sequence[Any]:
    """The request, or its parts if it was evicted, or suspended and recomputed."""
    segments: Sequence[Any] = getattr(record, "requests", None) or (record,)
    return segments


def _generated(record: Any) -> tuple[int, ...]:
    return tuple(token for part in _segments(record) for token in part.generated_tokens)


def _unfinished(
    engine: Any, requests: Sequence[Request], futures: Mapping[int, Any], max_steps: int
) -> str:
    waiting = [
        index for index in range(len(requests)) if index not in futures or not futures[index].done()
    ]
    state = "; the engine is suspended" if is_suspended(engine) else ""
    return f"requests {waiting} of {len(requests)} did not end within {max_steps} steps{state}"
