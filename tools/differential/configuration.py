"""What one run of the matrix is, as a plain value that fits into a command line."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from types import MappingProxyType
from typing import Any

from .serving import is_greedy, means_something

VOCABULARY = 64
LONGEST = 64
"""Tokens of a prompt and of what is generated for it, at the most, unless it is said."""
LONGEST_PROMPT = 44

GREEDY = (1.0, 1, 0.0)

NAN = float("nan")
"""The same object wherever it is read, so that configurations that have it are equal."""

ODD_STOPS = MappingProxyType(
    {
        "empty": "a word of no tokens",
        "absent": "a token that the vocabulary has not",
        "long": "a word that is longer than any answer",
        "again": "the stop word a second time, and a longer one that begins with it",
    }
)
"""Further stop words, which end no answer that the stop word does not end."""


@dataclass(frozen=True)
class Plan:
    """One request. Its prompt is the beginning of a stem, of which some begin alike."""

    stem: int = 0
    length: int = 4
    num_tokens: int = 4
    arrival: int = 0
    """Step before which it comes."""
    log_probs: str | None = None
    """``generated``, or ``all``, which has those of the prompt too."""
    top_n: int = 0
    sampling: tuple[float, int, float] = GREEDY
    """Temperature, top-k and top-p. Some values mean nothing, and have to be refused."""
    stop: tuple[int, int] | None = None
    """A stop word: so many tokens from that place on of what the model alone generates."""
    end: int | None = None
    """Its termination id is the token at that place of what the model alone generates."""
    odd_stop: str | None = None
    """A key of :data:`ODD_STOPS`."""
    times: int = 1
    """How often each token of the stem comes, one after the other, so that the beginnings that
    stems have in common are as long as blocks of so many times the tokens."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens; a prompt longer than its stem goes on with the stem's beginning."""
        stem = tuple(token for token in stems()[self.stem] for _ in range(self.times))
        return (stem * (1 + self.length // len(stem)))[: self.length]

    @property
    def greedy(self) -> bool:
        return is_greedy(self.sampling)

    @property
    def meant(self) -> bool:
        """Whether a request with these sampling parameters can be served."""
        return means_something(self.sampling)

    def is_too_long(self, longest: int) -> bool:
        """Whether it asks for more tokens than a sequence can have, or for less than none."""
        return self.num_tokens < 0 or self.length + self.num_tokens > longest


@dataclass(frozen=True)
class Happening:
    """Something between two steps."""

    step: int = 0
    what: str = "suspend"
    """``suspend`` for ``steps`` steps; ``train``, a training step; ``update``, other weights
    without one; ``evaluate``, the model alone without gradients; ``epoch``, the next one."""
    steps: int = 1


@dataclass(frozen=True)
class Configuration:
    """An engine, its requests, and what happens to them. The defaults are the plainest."""

    requests: tuple[Plan, ...] = (Plan(),)
    happenings: tuple[Happening, ...] = ()
    company: str | None = None
    """Who else is in the process: a key of :data:`tools.differential.company.COMPANY`."""

    spare_blocks: int | None = None
    """KV blocks beyond those of the longest request. None: enough for all. Below 0: too few even
    for that one."""
    paused_blocks: int = 0
    """Blocks set aside for paused requests, where the pool is not enough for all."""
    block_size: int = 8
    max_requests: int = 8
    max_tokens: int = 64
    longest: int = LONGEST
    """Tokens of a sequence, at the most."""
    graphs: int | None = None
    """At most so many CUDA graphs, or sizes that batches are padded to."""
    mixed: bool = False
    """CUDA graphs, or padding, for steps with prompts too."""
    scope: str | None = None
    """What is captured in one CUDA graph: ``layer`` or ``block``. None: nothing, batches are only
    padded."""
    only_last: bool = True
    chunked: bool = False
    prefix: str | None = None
    """Prefix caching by that policy: ``REF_ZERO`` or ``LRU``."""
    suspension: str | None = None
    """What becomes of the KV cache in suspension: ``persist``, ``offload`` or ``recompute``."""
    speculative: int = 0
    scheduling: str | None = None
    """``legacy`` or ``async``."""
    grouped: bool = False
    """Two heads share keys and values."""
    experts: int | None = None
    window: tuple[int, int] | None = None
    """Tokens before and behind its own position that attention sees. None: all before."""
    window_skip: int | tuple[int, ...] | None = None
    """Each so many-th layer has no window; or, for each layer, 1 for a window and 0 for none."""
    sinks: str | None = None
    """A score more in attention's denominator: ``off-by-one`` or ``learnable``."""
    scale: float | None = None
    """What scores of attention are multiplied by."""
    positions: str = "learned_absolute"
    """Or ``rope``, or ``yarn``."""
    latents: bool = False
    """Multi-latent attention, whose latents are what is cached."""
    hybrid: int | None = None
    """The context is that of a model with a Mamba layer, too, of whose states the prefix cache has
    room for so many. None: without one."""
    recompute: bool = False
    """Training recomputes activations."""
    token_events: bool = False
    caller: str | None = None
    """The caller's mode of autograd around each step: ``no_grad`` or ``inference_mode``."""
    lessons: tuple[str, ...] = ()
    """What a trainer does with another model when the engine is done: ``train``, ``evaluate`` in
    evaluation mode, or ``look``, which is to evaluate in training mode."""
    microbatches: int = 1
    """Of each training step in ``lessons``."""
    captured: bool = False
    """The trainer's model has its layers in CUDA graphs."""
    dtype: str = "float32"
    seed: int = 0

    @property
    def updates(self) -> bool:
        """Whether the weights change."""
        return any(happening.what in ("train", "update") for happening in self.happenings)

    def of_model(self) -> Configuration:
        """The plainest configuration with the same model."""
        return Configuration(
            longest=self.longest,
            grouped=self.grouped,
            dtype=self.dtype,
            speculative=self.speculative,
            experts=self.experts,
            window=self.window,
            window_skip=self.window_skip,
            sinks=self.sinks,
            scale=self.scale,
            positions=self.positions,
            latents=self.latents,
        )


@cache
def stems() -> tuple[tuple[int, ...], ...]:
    """What prompts are cut from. They have parents, with which they begin."""
    rng = random.Random("stems")
    found: list[tuple[int, ...]] = []
    for number in range(8):
        shared = found[number // 2][: 8 * (number % 4)] if number else ()
        fresh = (rng.randrange(VOCABULARY) for _ in range(LONGEST_PROMPT - len(shared)))
        found.append((*shared, *fresh))
    return tuple(found)


def _sparse(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults."""
    defaults = {
        field.name: field.default for field in fields(value) if field.default is not MISSING
    }
    return {
        name: item
        for name, item in ((field.name, getattr(value, field.name)) for field in fields(value))
        if name not in defaults or item != defaults[name]
    }


def encode(configuration: Configuration) -> str:
    """JSON without the fields that are at their defaults. :func:`decode` reads it."""
    found = _sparse(configuration)
    for name in ("requests", "happenings"):
        if name in found:
            found[name] = [_sparse(item) for item in found[name]]
    return json.dumps(found, separators=(",", ":"))


def decode(text: str) -> Configuration:
    """Read what :func:`encode` wrote.

    Raises:
        ValueError: ``text`` is no configuration; the message says why.
    """
    try:
        found = json.loads(text, parse_constant={"NaN": NAN}.get)
        for name, kind in (("requests", Plan), ("happenings", Happening)):
            if name in found:
                found[name] = tuple(kind(**_tuples(item)) for item in found[name])
        found = _tuples(found)
        return Configuration(**found)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not a configuration, such as matrix.py prints: {error}") from error


def _tuples(item: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in item.items()
    }


NOT_COUNTED = ("requests", "happenings", "seed", "spare_blocks", "paused_blocks", "lessons")


def dimensions(configuration: Configuration) -> dict[str, str]:
    """Each dimension of the matrix, and where in it the configuration is, for the report."""
    plans, happenings = configuration.requests, configuration.happenings
    named = {
        field.name: str(getattr(configuration, field.name))
        for field in fields(configuration)
        if field.name not in NOT_COUNTED
    }
    samplings = {plan.sampling for plan in plans}
    blocks = configuration.spare_blocks
    named["pool"] = "plenty" if blocks is None else "scarce" if blocks >= 0 else "too small"
    named["log_probs"] = "+".join(sorted({str(plan.log_probs) for plan in plans}))
    named["top_n"] = str(any(plan.top_n for plan in plans))
    named["sampling"] = (
        "mixed"
        if len(samplings) > 1
        else "greedy"
        if samplings == {GREEDY}
        else "one of no greedy kind"
    )
    named["sampling parameters"] = "+".join(sorted({_kind_of_sampling(plan) for plan in plans}))
    named["other stop words"] = "+".join(sorted({str(plan.odd_stop) for plan in plans}))
    named["empty prompt"] = str(any(plan.length == 0 for plan in plans))
    named["too long"] = str(any(plan.is_too_long(configuration.longest) for plan in plans))
    named["prompt over max_tokens"] = str(
        any(plan.length > configuration.max_tokens for plan in plans)
    )
    named["stop words"] = "+".join(
        sorted({"none" if p.stop is None else f"{p.stop[1]} at {min(p.stop[0], 1)}" for p in plans})
    )
    named["termination id"] = str(any(plan.end is not None for plan in plans))
    named["arrival"] = "at once" if len({plan.arrival for plan in plans}) == 1 else "staggered"
    named["zero tokens"] = str(any(plan.num_tokens == 0 for plan in plans))
    named["requests"] = str(len(plans))
    named["lessons"] = "+".join(sorted(set(configuration.lessons))) or "none"
    for what in ("suspend", "train", "update", "evaluate", "epoch"):
        named[what] = str(sum(happening.what == what for happening in happenings))
    return named


def _kind_of_sampling(plan: Plan) -> str:
    temperature, top_k, top_p = plan.sampling
    if not plan.meant:
        return "meaningless"
    if temperature == 0:
        return "temperature 0"
    if plan.greedy:
        return "greedy"
    filters = ["top-k"] * (top_k > 0) + ["top-p"] * (top_p > 0)
    return " and ".join(filters) or "no filter"


def as_dict(configuration: Configuration) -> dict[str, Any]:
    """All fields, for a report."""
    return asdict(configuration)
