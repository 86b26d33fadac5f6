"""Thousands of random requests through Megatron's own engine, with the default patches.

The run is cut into lives. A life is one engine, whose features its scenario and its seed decide,
and a few waves of requests, after each of which the engine is idle. Each request has to end with
the tokens, and the log-probs, that it gets when it is alone in an engine without any features. One
that is sampled has to have tokens that its own parameters allow, by the logits of the model alone,
and the log-probs of the model alone. One that ends at a stop word or a termination id has to end
there, and one that can never be served has to be answered with a status and an error. In each step
the KV blocks have to be those that the requests hold, and when the engine is idle all of them have
to be free. A life that fails is reported with the command that repeats it alone.

    python tools/soak.py --requests 20000 --json soak.json    # on each pin; one core each
    python tools/soak.py --requests 5000 --seed 100000        # a part of a run that is split

Features that the installed release lacks are left out. On a CPU, in float32, so that tokens can be
compared exactly. Exit status: 0 if all lives ended well, 1 if one failed, 2 for a bad command line.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import platform
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from packaging.version import Version

# A script's own directory is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

import megatron_patch
from megatron_patch import testing
from megatron_patch.testing.decoding import add_request, has_work, stepper
from megatron_patch.testing.event_loop import settle
from megatron_patch.testing.releases import (
    context_parameters,
    engine_class,
    parameters_of,
    set_inference_mode,
)
from megatron_patch.testing.version import core_release, core_version
from tools.differential import blocks, draws
from tools.differential.observing import parts_of
from tools.differential.serving import OWN_PARAMETERS, Room, is_greedy, refusals

LONGEST_PROMPT = 40
MOST_TOKENS = 12
LONGEST = LONGEST_PROMPT + MOST_TOKENS
BLOCK = 8
SEQUENCE_BLOCKS = -(-LONGEST // BLOCK)
MODEL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "vocab_size": 128,
    "max_sequence_length": LONGEST,
    "block_size_tokens": BLOCK,
}
BLOCK_GB = 2 * MODEL["num_layers"] * BLOCK * MODEL["hidden_size"] * 4 / 1024**3

# Sums come out a little different in another batch, and then two tokens that are this close could
# change places. Prompts that lead to such a choice are not used.
MARGIN = 1e-4
TOLERANCE = 1e-4

GREEDY = (1.0, 1, 0.0)
NAN = float("nan")
# Temperature, top-k and top-p. The first are greedy, whatever else they say.
AS_GREEDY = ((0.0, 0, 0.0), (0.0, 5, 0.9), (0.5, 1, 1.0), (1.0, 1, 0.5))
SAMPLED = (
    (1.0, 0, 0.0),
    (0.7, -1, 0.0),
    (1.5, 5, 0.0),
    (1.0, 0, 0.8),
    (1.0, 0, 1.0),
    (1.2, 8, 0.7),
    (0.7, 20, 1.0),
    (2.0, 999, 0.5),
)
MEANINGLESS = ((NAN, 0, 0.0), (-1.0, 0, 0.0), (1.0, -2, 0.0), (1.0, 0, 1.5), (1.0, 5, -0.5))

RELEASE = core_release()


class SoakError(Exception):
    """What the engine did wrong."""


@dataclass(frozen=True)
class Features:
    """What an engine has, and what happens to it. False and None: no such thing."""

    log_probs: str | None = None
    """Some requests want them: of what is ``generated`` only, or of ``all``, the prompt too."""
    scoring: bool = False
    """Some requests generate nothing: they want the log-probs of their prompts."""
    scarce: bool = False
    """Fewer KV blocks than the requests need, so that they are paused and evicted."""
    padding: bool = False
    """Batches are padded to a few sizes, as for CUDA graphs."""
    chunks: bool = False
    """Prompts are split where a step has no room for all of one."""
    prefixes: str | None = None
    """The policy by which cached blocks of common prefixes are evicted."""
    suspension: str | None = None
    """What becomes of the KV cache when the engine is suspended; ``default`` where there is no
    choice."""
    stops: bool = False
    """Some requests have stop words, or a termination id."""
    sampling: bool = False
    """Requests differ in temperature, top-k and top-p; before 0.16 waves do."""
    refused: bool = False
    """Some requests can never be served."""


SCENARIOS: dict[str, Features] = {
    "plain": Features(),
    "log-probs": Features(log_probs="all"),
    "generated": Features(log_probs="generated"),
    "scoring": Features(scoring=True),
    "scarce": Features(scarce=True),
    "padding": Features(padding=True),
    "chunks": Features(chunks=True),
    "ref-zero": Features(prefixes="REF_ZERO"),
    "lru": Features(prefixes="LRU"),
    "suspend": Features(suspension="default"),
    "persist": Features(suspension="persist"),
    "offload": Features(suspension="offload"),
    "recompute": Features(suspension="recompute"),
    "stops": Features(stops=True, log_probs="generated"),
    "sampling": Features(sampling=True, log_probs="all"),
    "refused": Features(refused=True, scarce=True),
}
MIXED = "mixed"
"""The scenario whose features are drawn."""


def available() -> dict[str, list[Any]]:
    """The values that each field of `Features` can have on the installed release."""
    engine = engine_class()
    known = {*parameters_of(engine), *context_parameters()}
    values: dict[str, list[Any]] = {name.name: [name.default] for name in fields(Features)}
    for name in ("scarce", "padding", "sampling", "refused"):
        values[name].append(True)
    values["log_probs"].append("all")
    if OWN_PARAMETERS:
        values["log_probs"].append("generated")
        values["stops"].append(True)
    if RELEASE >= Version("0.17"):  # before, such a request gets one token all the same
        values["scoring"].append(True)
    if "enable_chunked_prefill" in known:
        values["chunks"].append(True)
    if "enable_prefix_caching" in known:
        values["prefixes"] += ["REF_ZERO", "LRU"]
    if "kv_cache_management_mode" in known:
        values["suspension"] += ["persist", "offload", "recompute"]
    elif hasattr(engine, "suspend"):
        values["suspension"].append("default")
    return values


def scenarios() -> list[str]:
    """The names of the scenarios that the installed release can play."""
    values = available()
    singles = [
        name
        for name, features in SCENARIOS.items()
        if all(value in values[field] for field, value in asdict(features).items())
    ]
    return [*singles, MIXED]


@dataclass(frozen=True)
class Answer:
    """What a prompt has to be answered with."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    """Of each token but the first: of those of the prompt, then of those generated."""
    margin: float
    """The smallest lead, in logits, that a generated token had over the second best one."""


@cache
def _lonely_engine() -> Any:
    spec = testing.EngineSpec(
        **MODEL,
        materialize_only_last_token_logits=False,
        enable_chunked_prefill=_no_chunks(),
    )
    return testing.build_engine(spec)


def _no_chunks() -> bool | None:
    return False if True in available()["chunks"] else None


@cache
def answer(prompt: tuple[int, ...]) -> Answer:
    """The answer to a prompt that is alone in an engine without features."""
    import torch

    request = testing.Request(prompt, MOST_TOKENS)
    try:
        decoded = testing.decode(_lonely_engine(), [request])
    except Exception:
        _lonely_engine.cache_clear()  # the request is still in that one
        raise
    (tokens,) = decoded.tokens
    # The first step has a row for each token of the prompt, each other step one. The rest is
    # padding.
    rows = torch.cat([decoded.logits[0][0, : len(prompt)], *(x[0, :1] for x in decoded.logits[1:])])
    best = rows[len(prompt) - 1 :].topk(2).values
    following = torch.tensor([*prompt[1:], *tokens], device=rows.device)
    chosen = rows.log_softmax(-1).gather(-1, following[:, None]).flatten()
    return Answer(tokens, tuple(chosen.tolist()), float((best[:, 0] - best[:, 1]).min()))


@cache
def _model() -> Any:
    return testing.build_model(testing.EngineSpec(**MODEL))


def logits_alone(sequence: Sequence[int]) -> Any:
    """Logits of the model alone, of all places of a sequence: (tokens, vocabulary)."""
    import torch

    model, count = _model(), len(sequence)
    device = next(model.parameters()).device
    hidden = torch.ones(count, count, dtype=torch.bool, device=device).triu(1)[None, None]
    before = set_inference_mode(False)
    try:
        with torch.no_grad():
            tokens = torch.tensor([list(sequence)], device=device)
            return model(tokens, torch.arange(count, device=device)[None], hidden)[0].float()
    finally:
        set_inference_mode(before)


@cache
def stems() -> list[tuple[int, ...]]:
    """What prompts are cut from. They have parents, with which they begin."""
    rng = random.Random("stems")
    found: list[tuple[int, ...]] = []
    for number in range(8):
        shared = found[number // 2][: BLOCK * (number % 4)] if number else ()
        fresh = (rng.randrange(MODEL["vocab_size"]) for _ in range(LONGEST_PROMPT - len(shared)))
        found.append((*shared, *fresh))
    return found


def draw_prompt(rng: random.Random) -> tuple[int, ...]:
    """The beginning of a stem; about every second one ends within one token of a block's end."""
    while True:
        length = rng.randint(1, LONGEST_PROMPT)
        if rng.random() < 0.5:
            length = rng.randrange(BLOCK, LONGEST_PROMPT, BLOCK) + rng.choice((-1, 0, 1))
        prompt = rng.choice(stems())[:length]
        if answer(prompt).margin > MARGIN:
            return prompt


def draw_features(rng: random.Random) -> Features:
    """Features that the installed release has, in any combination."""
    return Features(**{name: rng.choice(values) for name, values in available().items()})


class Life:
    """One engine and the requests that come to it."""

    def __init__(self, scenario: str, seed: int) -> None:
        self.scenario, self.seed = scenario, seed
        self.counts: Counter[str] = Counter()
        self._rng = random.Random(f"{scenario} {seed}")
        if scenario in SCENARIOS:
            self.features = SCENARIOS[scenario]
        else:
            self.features = draw_features(self._rng)
        self.spec = self._draw_spec()

    def _draw_spec(self) -> testing.EngineSpec:
        rng, features = self._rng, self.features
        of_prompts = features.scoring or features.log_probs == "all"
        max_requests = rng.choice((8, 16, 32))
        # 0.14 and 0.15 have batches of multiples of 8 only.
        graphs = 1 if max_requests == 8 else rng.choice((1, 2, 4))
        arguments: dict[str, Any] = {
            "max_requests": max_requests,
            "max_tokens": rng.choice((64, 128)),
            "enable_chunked_prefill": features.chunks or _no_chunks(),
            "enable_prefix_caching": features.prefixes is not None,
            "materialize_only_last_token_logits": not of_prompts and rng.random() < 0.5,
            "num_cuda_graphs": graphs if features.padding else None,
        }
        options: dict[str, Any] = {}
        if features.suspension not in (None, "default"):
            arguments["kv_cache_management_mode"] = features.suspension
        if features.prefixes is not None:
            from megatron.core.inference.config import PrefixCachingEvictionPolicy

            policy = PrefixCachingEvictionPolicy[features.prefixes]
            options["prefix_caching_eviction_policy"] = policy
        if features.scarce:
            # Enough for the longest sequence, not counting those set aside: for paused requests, or
            # before 0.16 for one request that can always go on.
            fewest = 3 if features.refused else SEQUENCE_BLOCKS
            number, aside = rng.randint(fewest, 20), SEQUENCE_BLOCKS
            if "paused_buffer_size_gb" in context_parameters():
                aside = rng.choice((0, 4, 8))
                options["paused_buffer_size_gb"] = (aside + 0.5) * BLOCK_GB
            number += aside
            arguments["buffer_size_gb"] = (number + 1.5) * BLOCK_GB  # one is for padding
        return testing.EngineSpec(**MODEL, **arguments, options=options)

    def run(self, requests: int) -> None:
        """Run waves, until there were so many ``requests`` or the life is over.

        Raises SoakError, or what the engine raised.
        """
        engine = testing.build_engine(self.spec)
        start = blocks.free(engine.context)
        for _ in range(self._rng.randint(2, 6)):
            self._wave(engine)
            check_idle(engine.context, start)
            if self.counts["requests"] >= requests:
                return

    def _wave(self, engine: Any) -> None:
        number = self._rng.randint(1, 40)
        self.counts["requests"] += number  # before they are drawn, which can fail
        requests = [self._draw_request() for _ in range(number)]
        wave_wide: dict[str, Any] = {}
        if not OWN_PARAMETERS:
            if self.features.log_probs:
                wave_wide["return_log_probs"] = self._rng.random() < 0.5
            if self.features.sampling:
                wave_wide.update(_parameters(self._rng.choice((*AS_GREEDY, *SAMPLED))))
        steps, answers = decode(engine, requests, self._on_step, wave_wide)
        for request, answered in zip(requests, answers, strict=True):
            why = self._refusal(engine, request)
            if why is not None:
                check_refused(request, answered, why)
                self.counts["refused"] += 1
                continue
            sampling = {**wave_wide, **request.sampling}
            check_answer(request, answered, sampling)
            parts = parts_of(answered)
            found = sum(len(part.generated_tokens) for part in parts)
            self.counts["tokens"] += found
            self.counts["sampled"] += not is_greedy(sampling_of(sampling))
            self.counts["ended early"] += found < request.num_tokens
            self.counts["came back"] += len(parts) > 1
        self.counts["steps"] += steps
        self.counts["evictions"] = getattr(engine, "evicted_request_count", 0)
        self.counts["prefix hits"] = getattr(engine, "_prefix_cache_hits", 0)

    def _refusal(self, engine: Any, request: testing.Request) -> str | None:
        """Why the request can never be served."""
        chunked = bool(self.spec.enable_chunked_prefill)
        room = Room(blocks.limits(engine.context), LONGEST, BLOCK, chunked)
        length, number = len(request.prompt), request.num_tokens
        return room.refusal(length, number, sampling_of(request.sampling))

    def _draw_request(self) -> testing.Request:
        rng, features = self._rng, self.features
        num_tokens, sampling = rng.randint(1, MOST_TOKENS), dict[str, Any]()
        if features.scoring and rng.random() < 0.25:
            num_tokens, sampling = 0, {"return_log_probs": True}
        elif features.log_probs and OWN_PARAMETERS and rng.random() < 0.5:
            skip = features.log_probs == "generated" or rng.random() < 0.5
            sampling = {"return_log_probs": True, "skip_prompt_log_probs": skip}
            if rng.random() < 0.3:
                sampling["top_n_logprobs"] = rng.randint(1, 3)
        prompt = draw_prompt(rng)
        if features.sampling and OWN_PARAMETERS and rng.random() < 0.7:
            sampling.update(_parameters(rng.choice((*AS_GREEDY, *SAMPLED))))
        if features.stops and num_tokens and rng.random() < 0.5:
            sampling.update(_draw_stops(rng, prompt, num_tokens))
        arrival = rng.choice((0, rng.randint(0, 40)))
        request = testing.Request(prompt, num_tokens, arrival, sampling)
        return self._draw_refused(request) if features.refused and rng.random() < 0.2 else request

    def _draw_refused(self, request: testing.Request) -> testing.Request:
        """A request that can never be served, where the release can say so."""
        rng, kinds = self._rng, list[str]()
        if RELEASE >= Version("0.15"):  # before, its blocks are lost: `tools/matrix.py` knows that
            kinds += ["prompt", "whole"]
        if OWN_PARAMETERS:
            kinds += ["less", "parameters"]
        if not kinds:
            return request
        kind = rng.choice(kinds)
        if kind == "prompt":
            return replace(request, prompt=request.prompt * (1 + LONGEST // len(request.prompt)))
        if kind == "whole":  # from 0.19 on as many as there is room for
            return replace(request, num_tokens=LONGEST - len(request.prompt) + rng.randint(1, 99))
        if kind == "less":
            return replace(request, num_tokens=-rng.randint(1, 9))
        return replace(
            request, sampling={**request.sampling, **_parameters(rng.choice(MEANINGLESS))}
        )

    def _on_step(self, engine: Any, step: int) -> None:
        context = engine.context
        if testing.is_suspended(engine):
            if self._rng.random() < 0.5:
                testing.resume(engine)
        elif self.features.suspension is not None and self._rng.random() < 0.05:
            testing.suspend(engine)
            self.counts["suspensions"] += 1
        if not testing.is_suspended(engine):
            check_blocks(context)
            chunked = getattr(context, "chunked_prefill_request_id", -1)
            self.counts["steps with chunks"] += chunked != -1
            self.counts["steps with paused requests"] += context.paused_request_count > 0


def _parameters(sampling: draws.Sampling) -> dict[str, Any]:
    return dict(zip(("temperature", "top_k", "top_p"), sampling, strict=True))


def sampling_of(parameters: Mapping[str, Any]) -> draws.Sampling:
    """Temperature, top-k and top-p of a request."""
    temperature, top_k, top_p = GREEDY
    return (
        parameters.get("temperature", temperature),
        parameters.get("top_k", top_k),
        parameters.get("top_p", top_p),
    )


def _draw_stops(rng: random.Random, prompt: tuple[int, ...], num_tokens: int) -> dict[str, Any]:
    """Stop words and a termination id, some from the answer to the prompt, some not."""
    tokens, found = answer(prompt).tokens[:num_tokens], dict[str, Any]()
    if rng.random() < 0.3:
        found["termination_id"] = rng.choice(tokens)
    if rng.random() < 0.8:
        words = []
        for _ in range(rng.randint(1, 2)):
            first = rng.randrange(len(tokens))
            words.append(" ".join(map(str, tokens[first : first + rng.randint(1, 3)])))
        # Words that are empty, that no answer has, and that no token is.
        odd = ("", "999", " ".join(["1"] * 99), " ".join(map(str, prompt[-2:])))
        words += [word for word in odd if rng.random() < 0.2]
        rng.shuffle(words)
        found["stop_words"] = words
        if rng.random() < 0.3:
            found["detokenize_stop_sequence"] = True
    return {name: value for name, value in found.items() if name in _known_parameters()}


@cache
def _known_parameters() -> frozenset[str]:
    from megatron.core.inference.sampling_params import SamplingParams

    return frozenset(parameters_of(SamplingParams))


def decode(
    engine: Any,
    requests: Sequence[testing.Request],
    on_step: Callable[[Any, int], None],
    wave_wide: Mapping[str, Any],
) -> tuple[int, list[Any]]:
    """Run requests until each is answered; returns the number of steps, and the answers.

    What 0.14 raises when it is given a request is the answer to it.
    """
    answers: dict[int, Any] = {}
    make_step, steps = stepper(engine, wave_wide), 0
    last = max(request.arrival_step for request in requests)
    most = last + 16 + 2 * sum(len(item.prompt) + max(item.num_tokens, 0) for item in requests)
    if not testing.is_suspended(engine):
        set_inference_mode(True)  # the suspension of another engine switches it off for all
    for step in range(most):
        for index, request in enumerate(requests):
            if request.arrival_step == step:
                try:
                    answers[index] = add_request(engine, request, {})
                except refusals() as error:
                    answers[index] = error
        on_step(engine, step)
        if not testing.is_suspended(engine) and has_work(engine):
            make_step()
            steps += 1
        if len(answers) == len(requests) and all(map(_is_answered, answers.values())):
            # All that was left was refused while the engine was suspended, without its tensors.
            if testing.is_suspended(engine):
                testing.resume(engine)
            settle(engine._loop)
            return steps, [_answered(answers[index]) for index in range(len(requests))]
    waiting = [index for index in range(len(requests)) if not _is_answered(answers.get(index))]
    raise SoakError(f"requests {waiting} of {len(requests)} did not end within {most} steps")


def _is_answered(found: Any) -> bool:
    return isinstance(found, BaseException) or (found is not None and found.done())


def _answered(found: Any) -> Any:
    return found if isinstance(found, BaseException) else found.result()


def check_blocks(context: Any) -> None:
    """No request may have a block twice, and no two the same one unless it is a common prefix."""
    for text in blocks.inconsistencies(context):
        raise SoakError(text)


def check_idle(context: Any, start: int) -> None:
    """An idle engine has all blocks that it started with."""
    if context.total_request_count:
        raise SoakError(f"an idle engine has {context.total_request_count} requests")
    if blocks.free(context) != start:
        raise SoakError(f"{blocks.free(context)} of {start} blocks are free in an idle engine")
    check_blocks(context)


def check_refused(request: testing.Request, answered: Any, why: str) -> None:
    """A request that can never be served has a status and an error that say so."""
    if isinstance(answered, BaseException):
        return
    parts = parts_of(answered)
    last = parts[-1]
    kinds = [event.type.name for part in parts for event in part.events]
    if last.status.name != "FAILED" or not any(kind.startswith("ERROR") for kind in kinds):
        raise SoakError(f"{request} ended as {last.status.name} with {kinds}, and {why}")


def check_answer(request: testing.Request, record: Any, sampling: dict[str, Any]) -> None:
    """`record` has to be what the engine of :func:`answer` would have made of the request."""
    if isinstance(record, BaseException):
        raise SoakError(f"{request} was refused: {record!r}")
    # A request that was evicted or recomputed has a part for each time.
    parts = parts_of(record)
    found = [token for part in parts for token in part.generated_tokens]
    status = getattr(parts[-1].status, "name", None)
    if status != "COMPLETED":
        raise SoakError(f"{request} ended as {status} with {parts[-1].events}")
    # Who asks for more tokens than there is room for gets fewer from 0.19 on; before, an error.
    number = min(request.num_tokens, LONGEST - len(request.prompt))
    if is_greedy(sampling_of(sampling)):
        right = cut(_continuation(request.prompt, number), sampling)
        if found != right:
            raise SoakError(f"{request} got the tokens {found}, not {right}")
    else:
        check_sampled(request, found, sampling, number)
    if sampling.get("return_log_probs"):
        check_log_probs(request, parts, sampling)


def _continuation(prompt: tuple[int, ...], number: int) -> list[int]:
    """What the model alone generates greedily."""
    tokens = list(answer(prompt).tokens[:number])
    while len(tokens) < number:  # more than other requests want
        tokens.append(int(logits_alone([*prompt, *tokens])[-1].argmax()))
    return tokens


def cut(tokens: Sequence[int], sampling: Mapping[str, Any]) -> list[int]:
    """The tokens of an answer that ends at stop words and a termination id."""
    words = _stop_words(sampling)
    found: list[int] = []
    for token in tokens:
        found.append(token)
        for word in words:
            if found[-len(word) :] == word:
                kept = sampling.get("detokenize_stop_sequence") or not _trims()
                return found if kept else found[: -len(word)]
        if token == sampling.get("termination_id"):
            return found
    return found


def check_sampled(
    request: testing.Request, found: list[int], sampling: Mapping[str, Any], number: int
) -> None:
    """The logits of the model alone allow each token, and the answer ends where it has to.

    An answer that is too short may have lost a stop word at its end; which one cannot be known.
    """
    rows = logits_alone([*request.prompt, *found])[len(request.prompt) - 1 :]
    for place, token in enumerate(found):
        if not draws.allows(rows[place], sampling_of(sampling), token, TOLERANCE):
            raise SoakError(f"{request} has {token} at {place}, which cannot be drawn: {found}")
    taken = bool(sampling.get("stop_words")) and _trims()
    right = cut(found, sampling)
    if right != found:
        raise SoakError(f"{request} goes on after {right}: {found}")
    ended = found[-1:] == [sampling.get("termination_id")] or _ends_with_word(found, sampling)
    if len(found) > number or (len(found) < number and not ended and not taken):
        raise SoakError(f"{request} has {len(found)} tokens, not {number}: {found}")


def _ends_with_word(tokens: list[int], sampling: Mapping[str, Any]) -> bool:
    return any(tokens[-len(word) :] == word for word in _stop_words(sampling))


def _stop_words(sampling: Mapping[str, Any]) -> list[list[int]]:
    """The tokens of each stop word that has some."""
    words = (list(map(int, word.split())) for word in sampling.get("stop_words", ()))
    return list(filter(None, words))


def check_log_probs(
    request: testing.Request, parts: Sequence[Any], sampling: Mapping[str, Any]
) -> None:
    """Each token has the log prob that the model alone gives it, and as many top-n as wanted."""
    found = [token for part in parts for token in part.generated_tokens]
    generated = [value for part in parts for value in part.generated_log_probs or ()]
    if OWN_PARAMETERS and len(generated) != len(found):
        raise SoakError(f"{request} has {len(found)} tokens and {len(generated)} log-probs")
    # Before 0.16 the first one that is generated may be in the list of the prompt.
    values = [*(parts[0].prompt_log_probs or ()), *generated]
    right = _log_probs(request, found)
    if sampling.get("skip_prompt_log_probs"):
        right = right[len(request.prompt) - 1 :]
    if len(values) != len(right):
        raise SoakError(f"{request} has {len(values)} log-probs, not {len(right)}")
    worst = max((abs(a - b) for a, b in zip(values, right, strict=True)), default=0.0)
    if not worst <= TOLERANCE:
        raise SoakError(f"{request} has log-probs that are off by up to {worst:.3g}")
    if sampling.get("top_n_logprobs"):
        top = [entry for part in parts for entry in part.generated_top_n_logprobs or ()]
        if [len(entry) for entry in top] != [sampling["top_n_logprobs"]] * len(found):
            raise SoakError(f"{request} has {len(found)} tokens and the top-n log-probs {top}")


def _log_probs(request: testing.Request, found: list[int]) -> list[float]:
    """Of each token after the first, by the model alone."""
    expected = answer(request.prompt)
    if list(expected.tokens[: len(found)]) == found:
        return list(expected.log_probs[: len(request.prompt) - 1 + len(found)])
    sequence = [*request.prompt, *found]
    rows = logits_alone(sequence).log_softmax(-1)
    return [float(rows[at, token]) for at, token in enumerate(sequence[1:])]


def _trims() -> bool:
    """Whether the release takes stop words out of the answer."""
    return "detokenize_stop_sequence" in _known_parameters()


@dataclass(frozen=True)
class Failure:
    """A life that did not end well."""

    life: str
    """Arguments of this program that repeat it."""
    features: str
    error: str
    where: str

    def __str__(self) -> str:
        return f"{self.life}\n  {self.error}\n  at {self.where}\n  {self.features}"


@dataclass
class Soak:
    """The lives of a run. They go on after one that fails."""

    only: Sequence[str]
    seed: int
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """By scenario."""
    failures: list[Failure] = field(default_factory=list)

    def run(self, requests: int, on_life: Callable[[Soak], None] = lambda soak: None) -> None:
        """As many lives as it takes to make so many requests."""
        for number in itertools.count():
            left = requests - self.total()["requests"]
            if left <= 0:
                return
            on_life(self)
            # A life must not depend on those before: the first one of another seed is the same.
            life = Life(self.only[number % len(self.only)], self.seed + number)
            try:
                life.run(left)
            except Exception as error:
                self.failures.append(_failure(life, error))
            life.counts["lives"] += 1
            before = self.counts.get(life.scenario, Counter())
            self.counts[life.scenario] = before + life.counts

    def total(self) -> Counter[str]:
        """The counts of all scenarios."""
        return sum(self.counts.values(), Counter())


def _failure(life: Life, error: Exception) -> Failure:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    set_ = {name: value for name, value in asdict(life.features).items() if value}
    return Failure(
        life=f"--scenarios {life.scenario} --seed {life.seed} --requests {life.counts['requests']}",
        features=f"{set_}, {life.spec}",
        error=f"{type(error).__name__}: {error}",
        where=f"{Path(frame.filename).name}:{frame.lineno}",
    )


class Progress:
    """On stderr, so that stdout has the results only: a line that is written over.

    Where stderr is no terminal, a new line each half minute.
    """

    SECONDS = 30.0

    def __init__(self) -> None:
        self._last = time.monotonic()

    def tell(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() >= self._last + self.SECONDS:
            self._last = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the lives and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--requests", type=int, default=20_000, help="make at least so many (default: 20000)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scenarios", nargs="+", metavar="SCENARIO", help=", ".join([*SCENARIOS, MIXED])
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    options = parser.parse_args(arguments)

    import torch

    testing.start()
    torch.set_num_threads(1)  # more only get in each other's way with tensors this small
    playable = scenarios()
    for name in options.scenarios or ():
        if name not in playable:
            parser.error(
                f"megatron-core {core_version()} can play {', '.join(playable)}; not {name!r}"
            )
    # Half of the lives are mixed ones.
    only = options.scenarios or [name for single in playable[:-1] for name in (single, MIXED)]

    progress = Progress()

    def on_life(soak: Soak) -> None:
        done = soak.total()
        progress.tell(
            f"{done['requests']} of {options.requests} requests in {done['lives']} lives, "
            f"{len(soak.failures)} failed"
        )

    soak = Soak(only, options.seed)
    begin = time.perf_counter()
    soak.run(options.requests, on_life)
    seconds = time.perf_counter() - begin
    progress.end()
    report = {
        "seed": options.seed,
        "seconds": round(seconds, 1),
        "versions": {
            "megatron-core": core_version(),
            "torch": importlib.metadata.version("torch"),
            "python": platform.python_version(),
        },
        "patches": {entry.id: str(entry.state) for entry in megatron_patch.status()},
        "total": soak.total(),
        "scenarios": soak.counts,
        "failures": [asdict(failure) for failure in soak.failures],
    }
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(f"megatron-core {core_version()}, seed {options.seed}, {seconds:.0f} s")
    for name, counts in {**soak.counts, "total": soak.total()}.items():
        print(f"  {name:10} " + ", ".join(f"{number} {what}" for what, number in counts.items()))
    for failure in soak.failures:
        print(f"FAILED: python tools/soak.py {failure}")
    print(f"{soak.total()['requests']} requests, {len(soak.failures)} lives failed")
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
