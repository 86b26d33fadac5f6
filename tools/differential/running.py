"""Run the real engine as a configuration says, and note what a caller can see."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from megatron_patch import testing
from megatron_patch.testing.decoding import add_request, has_work, stepper
from megatron_patch.testing.event_loop import settle
from megatron_patch.testing.releases import set_inference_mode

from . import blocks, building, draws, observing, states, training
from .company import COMPANY, Guest
from .configuration import VOCABULARY, Configuration, Plan
from .observing import Filed, Forward, Observation, Shortage, plain
from .serving import refusals

NOBODY = Guest("there is nobody else")


class Peers:
    """The other ranks, of which there are none."""

    share_experts = False
    """Whether the model runs only with all ranks, because they share its experts."""

    def any(self, one: bool) -> bool:
        """Whether ``one`` is true on any rank."""
        return one

    def all(self, one: bool) -> bool:
        """Whether ``one`` is true on all ranks."""
        return one


ALONE = Peers()


def run(configuration: Configuration, peers: Peers = ALONE) -> Observation:
    """One run, with the patches that are in force. An exception of the engine is noted."""
    return Run(configuration, peers).run()


@functools.cache
def continuation(configuration: Configuration, prompt: tuple[int, ...], count: int) -> Any:
    """What the model alone generates greedily, for stop words and termination ids."""
    model = testing.build_model(testing.EngineSpec(**building.model_fields(configuration)))
    (tokens,) = testing.reference_decode(model, [testing.Request(prompt, count)])
    return tokens


def _continuation(configuration: Configuration, plan: Plan) -> tuple[int, ...]:
    count = max(0, min(20, configuration.longest - plan.length)) if plan.length else 0
    found: tuple[int, ...] = continuation(configuration.of_model(), plan.prompt, count)
    return found


def stop_words(configuration: Configuration, plan: Plan) -> tuple[list[int], int | None]:
    """The stop word and the termination id of a request."""
    word: list[int] = []
    if plan.stop is not None:
        first, count = plan.stop
        word = list(_continuation(configuration, plan)[first : first + count])
    ends = () if plan.end is None else _continuation(configuration, plan)[plan.end :]
    return word, next(iter(ends), None)


def _odd_words(configuration: Configuration, plan: Plan, word: list[int]) -> list[list[int]]:
    """Further stop words, beside ``word``, that the plan asks for."""
    if plan.odd_stop == "empty":
        return [[]]
    if plan.odd_stop == "absent":
        return [[VOCABULARY + 1], [10 * VOCABULARY, 0]]
    if plan.odd_stop == "long":
        return [list(_continuation(configuration, plan) * configuration.longest)]
    if plan.odd_stop == "again" and word:
        return [[*word, *word], word]
    return []


class Run:
    """One run of one configuration."""

    def __init__(self, configuration: Configuration, peers: Peers = ALONE) -> None:
        self.configuration = configuration
        self.peers = peers
        self.seen = Observation(alone=not peers.share_experts)
        self.futures: dict[int, Any] = {}
        self.records: dict[int, Any] = {}
        self.refused: dict[int, observing.Record] = {}
        """Requests that raised when they were added: 0.14 has no other answer."""
        self.ids: dict[int, int] = {}
        """Indices of requests by the ids that the engine has for them."""
        self.version = 0
        self.epoch = 0
        self.resume_at: int | None = None
        self.in_step = False
        self.outputs: list[Any] = []
        self.steps: list[Any] = []
        self.training: list[Any] = []
        self._places: dict[tuple[int, int, int], int] = {}
        self._lengths: dict[tuple[int, int], dict[str, int]] = {}
        self._held: dict[int, set[int]] = {}
        """By their ids, the blocks of the requests that the last forward pass found."""
        self._evicted = 0
        self._layer = states.Layer()

    def run(self) -> Observation:
        """Build the engine, run it, and note the end."""
        import torch

        configuration = self.configuration
        self.requests = [self._request(plan) for plan in configuration.requests]
        self.seen.filed = [[] for _ in self.requests]
        guest = COMPANY.get(configuration.company or "", NOBODY)
        torch.manual_seed(configuration.seed)
        record = self.seen.record
        record["error"] = None
        during = ["build"]
        self.engine: Any = None
        training.forget_earlier_runs()
        try:
            self.engine = testing.build_engine(building.spec(configuration))
            guest.built(self.engine)
            self.seen.free_at_start = blocks.free(self.engine.context)
            self.seen.limits = blocks.limits(self.engine.context)
            self._keep_weights()
            self._live(during)
            if configuration.lessons:
                record["lessons"] = training.lessons(configuration, during)
        except testing.UnsupportedError:
            raise
        except Exception as error:
            record["error"] = observing.failure(error, during[0])
            self.seen.error = error
        record["company"] = guest.observe()
        if self.engine is not None:
            self._end()
        return self.seen

    def _request(self, plan: Plan) -> testing.Request:
        configuration = self.configuration
        temperature, top_k, top_p = plan.sampling
        sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        if plan.log_probs is not None:
            sampling["return_log_probs"] = True
        if plan.log_probs == "generated":
            sampling["skip_prompt_log_probs"] = True
        if plan.top_n:
            sampling["top_n_logprobs"] = plan.top_n
        word, end = stop_words(configuration, plan)
        words = [*_odd_words(configuration, plan, word), *([word] if word else [])]
        if words:
            sampling["stop_words"] = [" ".join(map(str, item)) for item in words]
        if end is not None:
            sampling["termination_id"] = end
        return testing.Request(plan.prompt, plan.num_tokens, plan.arrival, sampling)

    def _live(self, during: list[str]) -> None:
        engine, plans = self.engine, self.configuration.requests
        set_inference_mode(True)  # the suspension of another engine switches it off for all
        wave: dict[str, Any] = {}
        if not _per_request(engine):
            # All requests are sampled alike, as the first one.
            known = self.requests[0].sampling if self.requests else {}
            wave = {n: v for n, v in known.items() if n != "skip_prompt_log_probs"}
        make_step = stepper(engine, wave)
        work = sum(plan.length + plan.num_tokens for plan in plans)
        last = max(
            [0]
            + [plan.arrival for plan in plans]
            + [item.step + item.steps for item in self.configuration.happenings]
        )
        with self._watched(engine), draws.noted(self.seen.draws, self._passes):
            # Other ranks may have more to do.
            most = 500 if self.peers.share_experts else last + 2 * work + 16
            for step in range(most):
                for index, request in enumerate(self.requests):
                    if request.arrival_step == step:
                        during[0] = f"adding request {index}"
                        self._add(index, request)
                during[0] = f"what happens before step {step}"
                self._happen(step)
                busy = not testing.is_suspended(engine) and has_work(engine)
                during[0] = f"step {step}"
                if self.peers.any(busy):
                    if busy:
                        before = len(self.seen.forwards)
                        # A step may evict requests before its forward pass, or behind it.
                        held = self._held
                        self.steps.append(self._step(make_step))
                        self._note_progress(before, held)
                    else:  # others need the experts of this rank
                        engine.controller.dummy_forward()
                elif self.peers.all(self._is_over(step)):
                    return
        raise TimeoutError(f"requests did not end within {most} steps")

    def _is_over(self, step: int) -> bool:
        return (
            len(self.futures) + len(self.refused) == len(self.requests)
            and all(future.done() for future in self.futures.values())
            and all(item.step <= step for item in self.configuration.happenings)
        )

    def _add(self, index: int, request: testing.Request) -> None:
        engine = self.engine
        if not _per_request(engine):
            request = testing.Request(request.prompt, request.num_tokens, request.arrival_step)
        known = set(engine.requests)
        try:
            self.futures[index] = add_request(engine, request, {})
        except refusals() as error:
            self.refused[index] = observing.failure(error, f"adding request {index}")
            return
        (self.ids[index],) = set(engine.requests) - known
        entry = engine.requests[self.ids[index]]
        self.records[index] = getattr(entry, "record", entry)

    def _passes(self) -> int | None:
        return len(self.seen.forwards) if self.in_step else None

    def _step(self, make_step: Callable[[], object]) -> Any:
        import torch

        caller = self.configuration.caller
        self.in_step = True
        try:
            with nullcontext() if caller is None else getattr(torch, caller)():
                result: Any = make_step()
        finally:
            self.in_step = False
        if isinstance(result, dict):
            # 0.15 has requests where later releases have ids and records.
            active = result.get("active_request_ids", result.get("active_requests"))
            ended = result.get("finished_request_records", result.get("finished_requests"))
            return [_ids(active), _ids(ended), observing.plain(result["cuda_graph_request_count"])]
        active, ended, _ = result
        return [_ids(active), _ids(ended), None]

    @contextmanager
    def _watched(self, engine: Any) -> Iterator[None]:
        """Note the tokens that the model is given, and what it returns."""
        context = engine.context
        model = engine.controller.inference_wrapped_model.model

        def before(module: Any, args: Any) -> None:
            if not self.in_step:
                return  # the trainer's
            first, end = context.paused_request_count, context.total_request_count
            indices = {number: index for index, number in self.ids.items()}
            forward = Forward(self.version, ahead=_pending(engine))
            for number, offset, count in zip(
                context.request_ids[first:end].tolist(),
                context.request_kv_length_offsets[first:end].tolist(),
                context.request_query_lengths[first:end].tolist(),
                strict=True,
            ):
                if number in indices:
                    index = indices[number]
                    part = len(observing.parts_of(self.records[index])) - 1
                    forward.rows.append((index, part, offset, count))
            if (
                len(forward.rows) == end - first
            ):  # otherwise the tokens are nobody's, as in a warm-up
                forward.tables = blocks.tables(context)
                forward.astray = blocks.astray(context, self.configuration.block_size)
                known = context.request_ids[:end].tolist()
                self._held = dict(zip(known, map(set, blocks.held(context)), strict=False))
                if self.configuration.hybrid is not None:
                    self._run_layer(forward, args[0])
            self.seen.forwards.append(forward)

        def after(module: Any, args: Any, output: Any) -> None:
            if not self.in_step:
                return
            only_last = self.configuration.only_last
            rows = context.total_request_count - context.paused_request_count
            if self.configuration.speculative or not only_last:
                rows = context.active_token_count
            self.outputs.append(observing.output(output, rows))
            self.seen.forwards[-1].logits = output[0, :rows].detach().clone()

        handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _run_layer(self, forward: Forward, tokens: Any) -> None:
        """Have the states of the Mamba layer see the tokens of a forward pass."""
        prompts = [
            plain(observing.parts_of(self.records[index])[part].prompt_tokens)
            for index, part, *_ in forward.rows
        ]
        forward.states = self._layer.run(self.engine.context, forward, tokens[0].tolist(), prompts)

    def _note_progress(self, before: int, held: dict[int, set[int]]) -> None:
        """Note which forward pass each new token came from, and what is wrong with the context.

        ``before``: how many forward passes there had been when the step began. ``held``: by their
        ids, the blocks of the requests that there were then.
        """
        forwards, context = self.seen.forwards, self.engine.context
        launched = len(forwards) - 1 if len(forwards) > before else None
        consumed = before - 1 if _is_async(self.engine) or launched is None else launched
        if launched is not None:
            indices = {number: index for index, number in self.ids.items()}
            active = slice(context.paused_request_count, context.total_request_count)
            ids = context.request_ids[active].tolist()
            forwards[launched].stayed = [indices[number] for number in ids if number in indices]
        for index, record in self.records.items():
            for number, part in enumerate(observing.parts_of(record)):
                for place in range(len(part.generated_tokens)):
                    self._places.setdefault((index, number, place), consumed)
                lengths = {n: len(getattr(part, n, None) or ()) for n in observing.LISTS}
                known = self._lengths.get((index, number), dict.fromkeys(lengths, 0))
                if lengths != known:
                    self._lengths[index, number] = lengths
                    grown = {name: lengths[name] - known[name] for name in lengths}
                    tokens = plain(part.generated_tokens[known["generated_tokens"] :])
                    filed = Filed(number, consumed, launched, grown, tokens)
                    self.seen.filed[index].append(filed)
        for text in blocks.inconsistencies(context):
            if text not in self.seen.invariants:
                self.seen.invariants.append(text)
        self._note_shortage({**held, **self._held})

    def _note_shortage(self, held: dict[int, set[int]]) -> None:
        """Note who is paused, who was evicted in the step, and which blocks they had."""
        context, engine = self.engine.context, self.engine
        there = context.request_ids[: context.total_request_count].tolist()
        left = set(there[: context.paused_request_count])
        evicted = getattr(engine, "evicted_request_count", 0) - self._evicted
        if evicted:
            self._evicted += evicted
            done = {self.ids[index] for index, future in self.futures.items() if future.done()}
            left |= held.keys() - set(there) - done
        if left:
            shared = {
                block
                for number in left
                for other, blocks_of_other in held.items()
                if other != number
                for block in held.get(number, set()) & blocks_of_other
            }
            cached, passes = blocks.cached(context), len(self.seen.forwards)
            self.seen.shortages.append(Shortage(passes, evicted, cached, len(shared)))

    def _happen(self, step: int) -> None:
        engine = self.engine
        if self.resume_at is not None and step >= self.resume_at:
            self.resume_at = None
            testing.resume(engine)
        for item in self.configuration.happenings:
            if item.step != step:
                continue
            if item.what == "suspend":
                if self.resume_at is None:
                    testing.suspend(engine)
                self.resume_at = step + item.steps
            elif item.what == "epoch":
                self.epoch += 1
                training.next_epoch(engine, self.epoch)
            else:
                model = engine.controller.inference_wrapped_model.model
                noted = training.between(item.what, model, self.configuration, self.version)
                self.training.append(noted)
                if item.what in ("train", "update"):
                    self.version += 1
                    self._keep_weights()

    def _keep_weights(self) -> None:
        if self.configuration.updates:
            model = self.engine.controller.inference_wrapped_model.model
            self.seen.weights.append(training.weights(model))

    def _end(self) -> None:
        import torch

        engine, record = self.engine, self.seen.record
        context, model = engine.context, engine.controller.inference_wrapped_model.model
        for index, future in self.futures.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                self.records[index] = future.result()
        settle(engine._loop)
        record["requests"] = [
            observing.request(self.records[index]) if index in self.records else None
            for index in range(len(self.requests))
        ]
        record["refused"] = {str(index): item for index, item in self.refused.items()}
        self.seen.generated = [[] for _ in self.requests]
        for (index, part, place), forward in sorted(self._places.items()):
            self.seen.generated[index].append((part, place, forward))
        record["steps"], record["outputs"] = self.steps, self.outputs
        record["training"] = self.training
        generator = getattr(engine.controller, "sampling_rng", None)
        record["end"] = {
            "free blocks": None if testing.is_suspended(engine) else blocks.free(context),
            "requests": context.total_request_count,
            "evicted": getattr(engine, "evicted_request_count", 0),
            "random": observing.digest(torch.get_rng_state()),
            "random of the device": _random_of_device(model),
            "sampling": None if generator is None else observing.digest(generator.get_state()),
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "gradients": [p.grad is not None for p in model.parameters()],
            "training": sorted({module.training for module in model.modules()}),
        }


def _random_of_device(model: Any) -> str | None:
    """The state of PyTorch's own generator of a CUDA device; None where the model is on a CPU."""
    device = next(model.parameters()).device
    if device.type == "cpu":
        return None
    return observing.digest(draws.default_generator(device).get_state())


def _ids(requests: Any) -> list[int]:
    """The ids of requests, records or ids."""
    return [int(getattr(item, "request_id", item)) for item in requests]


def _is_async(engine: Any) -> bool:
    """Whether a step takes its tokens from the forward pass of the step before."""
    mode = getattr(getattr(engine.context, "config", None), "async_sched_mode", None)
    return getattr(mode, "name", "LEGACY") == "ASYNC"


def _pending(engine: Any) -> bool:
    """Whether the tokens of the last forward pass are still to be taken when one begins."""
    logits = getattr(engine.controller, "_async_sched_logits", None)
    return bool(getattr(logits, "is_valid", False))


def _per_request(engine: Any) -> bool:
    from megatron_patch.testing.releases import parameters_of

    return "sampling_params" in parameters_of(engine.add_request)
