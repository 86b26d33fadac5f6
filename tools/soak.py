"""Thousands of random requests through Megatron's own engine, with the default patches.

The run is cut into lives. A life is one engine, whose features its scenario and its seed decide,
and a few waves of requests, after each of which the engine is idle. Each request has to end with
the tokens, and the log-probs, that it gets when it is alone in an engine without any features. In
each step the KV blocks have to be those that the requests hold, and when the engine is idle all of
them have to be free. A life that fails is reported with the command that repeats it alone.

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
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

# A script's own directory is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

import megatron_patch
from megatron_patch import testing
from megatron_patch.testing.releases import context_parameters, engine_class, parameters_of
from megatron_patch.testing.version import core_release, core_version
from tools.differential import blocks

LONGEST_PROMPT = 40
MOST_TOKENS = 12
LONGEST = LONGEST_PROMPT + MOST_TOKENS
BLOCK = 8
SEQUENCE_BLOCKS = -(-LONGEST // BLOCK)
MODEL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "max_sequence_length": LONGEST,
    "block_size_tokens": BLOCK,
}
BLOCK_GB = 2 * MODEL["num_layers"] * BLOCK * MODEL["hidden_size"] * 4 / 1024**3

# Sums come out a little different in another batch, and then two tokens that are this close could
# change places. Prompts that lead to such a choice are not used.
MARGIN = 1e-4
TOLERANCE = 1e-4

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
}
MIXED = "mixed"
"""The scenario whose features are drawn."""


@dataclass(frozen=True)
class Limit:
    """Features that releases cannot have together, and no patch of this package mends it.

    `tools/matrix.py` draws them all the same, and recognises what is wrong by its cause.
    """

    together: Mapping[str, tuple[Any, ...]]
    """Values of fields of `Features`."""
    releases: str
    why: str

    def excludes(self, features: Features) -> bool:
        """Whether the installed release cannot have these."""
        return RELEASE in SpecifierSet(self.releases) and all(
            getattr(features, name) in values for name, values in self.together.items()
        )


LIMITS = (
    Limit(
        {"chunks": (True,), "suspension": ("default",)},
        ">=0.16,<0.17",
        "a prompt of which some chunks are done when the engine is suspended is not begun anew",
    ),
)


def available() -> dict[str, list[Any]]:
    """The values that each field of `Features` can have on the installed release."""
    engine = engine_class()
    known = {*parameters_of(engine), *context_parameters()}
    values: dict[str, list[Any]] = {name.name: [name.default] for name in fields(Features)}
    for name in ("scarce", "padding"):
        values[name].append(True)
    values["log_probs"].append("all")
    if _of_one_request():
        values["log_probs"].append("generated")
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
    """Of each token after the first: of the prompt, then generated."""
    margin: float
    """By how much, at the least, a generated token was better than the next."""


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
    """Part of a stem; every second one ends with a block, or one token before or after that."""
    while True:
        length = rng.randint(1, LONGEST_PROMPT)
        if rng.random() < 0.5:
            length = rng.randrange(BLOCK, LONGEST_PROMPT, BLOCK) + rng.choice((-1, 0, 1))
        prompt = rng.choice(stems())[:length]
        if answer(prompt).margin > MARGIN:
            return prompt


def draw_features(rng: random.Random) -> Features:
    """Features that the installed release can have together."""
    while True:
        drawn = Features(**{name: rng.choice(values) for name, values in available().items()})
        if not any(limit.excludes(drawn) for limit in LIMITS):
            return drawn


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
            number, aside = rng.randint(SEQUENCE_BLOCKS, 20), SEQUENCE_BLOCKS
            if "paused_buffer_size_gb" in context_parameters():
                aside = rng.choice((0, 4, 8))
                options["paused_buffer_size_gb"] = (aside + 0.5) * BLOCK_GB
            number += aside
            arguments["buffer_size_gb"] = (number + 1.5) * BLOCK_GB  # one is for padding
        return testing.EngineSpec(**MODEL, **arguments, options=options)

    def run(self, requests: int) -> None:
        """No more waves than it takes to make so many requests.

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
        self.counts["requests"] += number  # also if drawing them fails, when it asks for an answer
        requests = [self._draw_request() for _ in range(number)]
        wave_wide = {}
        if self.features.log_probs and not _of_one_request():
            wave_wide["return_log_probs"] = self._rng.random() < 0.5
        decoded = testing.decode(
            engine, requests, on_step=self._on_step, capture_logits=False, sampling=wave_wide
        )
        for request, record in zip(requests, decoded.records, strict=True):
            check_answer(request, record, {**wave_wide, **request.sampling})
        self.counts["tokens"] += sum(map(len, decoded.tokens))
        self.counts["steps"] += decoded.steps
        self.counts["evictions"] = getattr(engine, "evicted_request_count", 0)
        self.counts["prefix hits"] = getattr(engine, "_prefix_cache_hits", 0)

    def _draw_request(self) -> testing.Request:
        rng, features = self._rng, self.features
        num_tokens, sampling = rng.randint(1, MOST_TOKENS), {}
        if features.scoring and rng.random() < 0.25:
            num_tokens, sampling = 0, {"return_log_probs": True}
        elif features.log_probs and _of_one_request() and rng.random() < 0.5:
            skip = features.log_probs == "generated" or rng.random() < 0.5
            sampling = {"return_log_probs": True, "skip_prompt_log_probs": skip}
        return testing.Request(
            draw_prompt(rng), num_tokens, rng.choice((0, rng.randint(0, 40))), sampling
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


def _of_one_request() -> bool:
    """Whether a request has sampling parameters of its own."""
    return "sampling_params" in parameters_of(engine_class().add_request)


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


def check_answer(request: testing.Request, record: Any, sampling: dict[str, Any]) -> None:
    """`record` is what the lonely engine would have made of the request."""
    # A request that was recomputed has a part for each time. Not its `merge()`, which fails if
    # only some of them have log-probs, and drops all if the first has none.
    parts = getattr(record, "requests", None) or [record]
    expected = answer(request.prompt)
    tokens = list(expected.tokens[: request.num_tokens])
    found = [token for part in parts for token in part.generated_tokens]
    if found != tokens:
        raise SoakError(f"{request} got the tokens {found}, not {tokens}")
    if not sampling.get("return_log_probs"):
        return
    generated = [value for part in parts for value in part.generated_log_probs or ()]
    if _of_one_request() and len(generated) != len(tokens):
        raise SoakError(f"{request} has {len(tokens)} tokens and {len(generated)} log-probs")
    # Before 0.16 the first one that is generated is in the list of the prompt.
    values = [*(parts[0].prompt_log_probs or ()), *generated]
    right = expected.log_probs[: len(request.prompt) - 1 + request.num_tokens]
    if sampling.get("skip_prompt_log_probs"):
        right = right[len(request.prompt) - 1 :]
    if len(values) != len(right):
        raise SoakError(f"{request} has {len(values)} log-probs, not {len(right)}")
    worst = max((abs(a - b) for a, b in zip(values, right, strict=True)), default=0.0)
    if not worst <= TOLERANCE:
        raise SoakError(f"{request} has log-probs that are off by up to {worst:.3g}")


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


def _progress(text: str) -> None:
    """One line on stderr, written over, so that stdout has the results only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the lives and report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000, help="at least so many")
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

    def on_life(soak: Soak) -> None:
        done = soak.total()
        _progress(
            f"{done['requests']} of {options.requests} requests in {done['lives']} lives, "
            f"{len(soak.failures)} failed"
        )

    soak = Soak(only, options.seed)
    begin = time.perf_counter()
    soak.run(options.requests, on_life)
    seconds = time.perf_counter() - begin
    _progress("")
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
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
