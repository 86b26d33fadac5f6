"""Hypothesis strategies of configurations that the installed release can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st
from packaging.version import Version

from megatron_patch.testing.releases import context_parameters, engine_class, parameters_of
from megatron_patch.testing.runtime import running
from megatron_patch.testing.version import core_release

from . import kernels
from .company import COMPANY
from .configuration import (
    GREEDY,
    LONGEST,
    LONGEST_PROMPT,
    NAN,
    ODD_STOPS,
    VOCABULARY,
    Configuration,
    Happening,
    Plan,
)

MOST_TOKENS = 14
LAST_STEP = 16
OF_LATENTS = 64
"""Tokens of a block of latents: the kernel takes no other."""

SAMPLINGS = (GREEDY, GREEDY, (1.0, 0, 0.0), (0.7, 0, 0.0), (1.5, 5, 0.0), (1.0, 0, 0.9))
ODD_SAMPLINGS = (
    (1.5, 8, 0.7),
    (0.7, 20, 1.0),
    (1.0, 1, 1.0),
    (1.0, 0, 1.0),
    (0.0, 0, 0.0),
    (0.0, 5, 0.9),
    (1e-40, 0, 0.0),
    (2.0, 2 * VOCABULARY, 0.5),
    (0.7, -1, 0.8),
)
"""Those that some samplers cannot take."""
MEANINGLESS = (
    (NAN, 0, 0.0),
    (-1.0, 0, 0.0),
    (1.0, -2, 0.0),
    (1.0, 0, 1.5),
    (1.0, 5, -0.5),
    (1.0, 0, NAN),
)


@dataclass(frozen=True)
class Abilities:
    """What the installed release has, found by looking at its signatures."""

    version: Version
    per_request: bool
    """A request has sampling parameters of its own."""
    skips: bool
    """A request can have the log probs of its answer without those of its prompt."""
    top_n: bool
    stops: bool
    chunked: bool
    prefixes: bool
    modes: bool
    suspension: bool
    speculative: bool
    asynchronous: bool
    token_events: bool
    epochs: bool
    zero_tokens: bool
    experts: bool
    """Mixture-of-experts layers run without Transformer Engine."""
    blocks: bool
    """CUDA graphs of all layers."""
    mixed: bool
    """CUDA graphs of steps with prompts."""
    layer_windows: bool
    """Some layers attend within a window, and others do not."""
    sinks: bool
    yarn: bool
    hybrid: bool
    """Models with Mamba layers."""
    windows: bool = True
    latents: bool = True
    """Multi-latent attention."""
    stretched: bool = False
    """Attention is that of flash-attn: see :mod:`.kernels`."""
    captures: bool = False
    """An engine with CUDA graphs captures them, as on a GPU, also where no scope is given."""
    only: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration that are not drawn, and their values."""

    @classmethod
    def installed(cls) -> Abilities:
        """Those of the installed release."""
        from megatron.core.inference.sampling_params import SamplingParams
        from megatron.core.models.common.embeddings import yarn_rotary_pos_embedding
        from megatron.core.transformer.moe import moe_utils
        from megatron.core.transformer.transformer_config import TransformerConfig

        engine, version = engine_class(), core_release()
        known = {*parameters_of(engine), *context_parameters()}
        sampling = parameters_of(SamplingParams)
        of_model = parameters_of(TransformerConfig)
        return cls(
            version=version,
            per_request="sampling_params" in parameters_of(engine.add_request),
            skips="skip_prompt_log_probs" in sampling,
            top_n="top_n_logprobs" in sampling,
            stops="stop_words" in sampling,
            chunked="enable_chunked_prefill" in known,
            prefixes="enable_prefix_caching" in known,
            modes="kv_cache_management_mode" in known,
            suspension=hasattr(engine, "suspend"),
            speculative="num_speculative_tokens" in known,
            asynchronous="async_sched_mode" in known,
            token_events="track_generated_token_events" in known,
            epochs="kv_cache_management_mode" in known,
            zero_tokens=version >= Version("0.17"),
            experts=hasattr(moe_utils, "te_general_gemm"),
            blocks=version >= Version("0.16"),
            mixed="use_cuda_graphs_for_non_decode_steps" in known,
            layer_windows="window_attn_skip_freq" in of_model,
            sinks="softmax_type" in of_model,
            hybrid="mamba_inference_state_config" in known,
            yarn=hasattr(yarn_rotary_pos_embedding, "_yarn_get_concentration_factor_from_config"),
            windows=kernels.have_windows(),
            latents=not kernels.are_real(),
            stretched=kernels.are_real(),
            captures=not running().on_cpu,
        )


def plans(able: Abilities, draw: Any, *, all_log_probs: bool, wave_wide: Mapping[str, Any]) -> Plan:
    """One request."""
    length = draw(
        st.integers(2, LONGEST_PROMPT)
        | st.sampled_from([*(size + off for size in (8, 16, 24, 32) for off in (-1, 0, 1)), 1])
    )
    num_tokens = draw(st.integers(1, MOST_TOKENS))
    if able.zero_tokens and draw(st.integers(0, 29)) == 29:
        num_tokens = 0
    found: dict[str, Any] = dict(wave_wide)
    if able.per_request:
        wanted = ["generated"] * able.skips + ["all", "all"] * all_log_probs
        found["log_probs"] = draw(st.sampled_from([None, *wanted]))
        if found["log_probs"] and able.top_n:
            found["top_n"] = draw(st.sampled_from([0, 0, 1, 3]))
        found["sampling"] = draw(st.sampled_from(SAMPLINGS))
    if able.stops and num_tokens:
        if draw(st.integers(0, 4)) == 4:
            # Seldom at the first token: that ends the engine of some releases.
            first = draw(st.sampled_from([1, 2, 4, 7, 1, 2, 4, 0]))
            found["stop"] = (min(first, num_tokens - 1), draw(st.integers(1, 3)))
        if draw(st.integers(0, 5)) == 5:
            found["end"] = draw(st.integers(0, num_tokens - 1))
        if draw(st.integers(0, 9)) == 9:
            found["odd_stop"] = draw(st.sampled_from(list(ODD_STOPS)))
    return Plan(
        stem=draw(st.integers(0, 7)),
        length=length,
        num_tokens=num_tokens,
        arrival=draw(st.just(0) | st.integers(0, LAST_STEP)),
        **found,
    )


def _with_odd_sampling(able: Abilities, draw: Any, found: dict[str, Any]) -> None:
    """Give requests sampling parameters that some samplers cannot take, or that mean nothing."""
    odd = ODD_SAMPLINGS + MEANINGLESS * draw(st.booleans())
    if not able.per_request:
        sampling = draw(st.sampled_from(odd))
        found["requests"] = tuple(replace(plan, sampling=sampling) for plan in found["requests"])
        return
    found["requests"] = tuple(
        replace(plan, sampling=draw(st.sampled_from([plan.sampling, *odd])))
        for plan in found["requests"]
    )


def _with_never_served(able: Abilities, draw: Any, found: dict[str, Any]) -> None:
    """Put requests that can never be served among the others."""
    plans = list(found["requests"])
    if found.get("spare_blocks") is not None and draw(st.booleans()):
        found["spare_blocks"] = -draw(st.integers(1, 3))
    for _ in range(draw(st.integers(1, 2))):
        plan = draw(st.sampled_from(plans))
        # Seldom the empty prompt, which ends the engine of all releases.
        kinds = ["prompt", "whole", "step", "step"] * 3 + ["less"] * 3 * able.per_request
        kind = draw(st.sampled_from([*kinds, "empty"]))
        if kind == "prompt":
            plan = replace(plan, length=draw(st.integers(LONGEST + 1, 2 * LONGEST_PROMPT)))
        elif kind == "whole":
            plan = replace(plan, num_tokens=LONGEST - plan.length + draw(st.integers(1, 9)))
        elif kind == "step":
            found["max_tokens"], found["longest"] = 64, 96
            plan = replace(plan, length=draw(st.integers(65, 80)))
            # A request that fits, and no longer does when it comes back after an eviction.
            plans[0] = replace(plans[0], length=draw(st.integers(52, 64)), num_tokens=14)
        elif kind == "less":
            plan = replace(plan, num_tokens=-1, stop=None, end=None)
        else:
            plan = replace(plan, length=0)
        plans.insert(draw(st.integers(0, len(plans))), plan)
    found["requests"] = tuple(plans)


def happenings(able: Abilities, draw: Any) -> tuple[Happening, ...]:
    """What happens between steps; mostly nothing."""
    kinds = ["train", "update", "evaluate"]
    if able.suspension:
        kinds += ["suspend", "suspend", "suspend"]
    if able.epochs:
        kinds += ["epoch"]
    number = draw(st.sampled_from([0, 1, 1, 2, 2, 3]))
    return tuple(
        Happening(
            step=draw(st.integers(0, LAST_STEP)),
            what=draw(st.sampled_from(kinds)),
            steps=draw(st.integers(1, 3)),
        )
        for _ in range(number)
    )


def _crowd(draw: Any, found: dict[str, Any]) -> None:
    """Have requests evicted and come back: many at a time want more blocks than there are.

    That is where releases, and patches, go wrong most often; left to chance it is rare.
    """
    found["block_size"] = 4
    found["spare_blocks"] = draw(st.integers(0, 5))
    found["paused_blocks"] = draw(st.sampled_from([0, 0, 4]))
    found["requests"] = tuple(
        replace(
            plan,
            length=2 + plan.length % 22,
            num_tokens=plan.num_tokens and 6 + plan.num_tokens % 8,
            arrival=plan.arrival % 6,
        )
        for plan in found["requests"]
    )
    found["happenings"] = tuple(
        replace(item, step=1 + item.step % 9) for item in found["happenings"]
    )


def _with_other_attention(able: Abilities, draw: Any, found: dict[str, Any]) -> None:
    """Have attention that is not the plainest, in one way or in several at a time."""
    if able.windows and draw(st.booleans()):
        # Narrower than most prompts, so that sequences outgrow it.
        found["window"] = (draw(st.sampled_from([0, 1, 3, 7, 8, 15])), 0)
        if able.layer_windows:
            found["window_skip"] = draw(st.sampled_from([None, None, 2, (1, 0), (0, 1)]))
    if able.sinks and draw(st.booleans()):
        found["sinks"] = draw(st.sampled_from(["off-by-one", "learnable"]))
    if draw(st.booleans()):
        found["scale"] = draw(st.sampled_from([0.05, 0.5, 1.0]))
    found["positions"] = draw(
        st.sampled_from(["learned_absolute", "rope", *["yarn", "yarn"] * able.yarn])
    )


def _with_latents(draw: Any, found: dict[str, Any]) -> None:
    """Have multi-latent attention, and sequences of more than one of its blocks.

    A model whose latents are cached refuses to be trained, or called without its engine.
    """
    found.update(latents=True, block_size=OF_LATENTS, longest=128, max_tokens=128, grouped=False)
    found["requests"] = tuple(
        replace(plan, length=plan.length + draw(st.sampled_from([0, 0, 30, 44])))
        for plan in found["requests"]
    )
    found["happenings"] = tuple(
        item for item in found["happenings"] if item.what not in ("train", "evaluate")
    )


def _with_cached_states(draw: Any, found: dict[str, Any]) -> None:
    """Have a prompt end with a block, as only then its state is cached, and come again.

    It is the same, or goes on with one or two tokens more.
    """
    first, *others = found["requests"]
    size = found["block_size"]
    first = replace(first, length=size * max(1, min(first.length, 40) // size))
    again = replace(
        first,
        length=first.length + draw(st.integers(0, 2)),
        arrival=first.arrival + draw(st.integers(1, 6)),
    )
    found["requests"] = (first, *others, again)


def _without_captured_graphs(able: Abilities, found: dict[str, Any]) -> None:
    """Of what Megatron refuses to capture; where it captures all graphs, there are none."""
    for name in ("scope", *(["graphs", "mixed"] if able.captures else [])):
        found.pop(name, None)


@st.composite
def configurations(draw: Any, able: Abilities) -> Configuration:
    """Configurations of the installed release. What it lacks is left at its default."""

    def one_in(number: int) -> bool:
        return bool(draw(st.integers(0, number - 1)) == number - 1)

    found: dict[str, Any] = {
        "block_size": draw(st.sampled_from([4, 8])),
        "max_requests": draw(st.sampled_from([8, 8, 16])),
        "max_tokens": draw(st.sampled_from([64, 64, 128])),
        "only_last": draw(st.booleans()),
        "grouped": one_in(4),
        "seed": draw(st.integers(0, 3)),
    }
    if one_in(3):
        # 0.14 and 0.15 have batches of multiples of 8 only.
        found["graphs"] = 1 if found["max_requests"] == 8 else draw(st.sampled_from([1, 2]))
        if able.mixed:
            found["mixed"] = one_in(3)
        scopes = [*([] if able.captures else [None]), "layer", *["block"] * able.blocks]
        scope = draw(st.sampled_from(scopes))
        if scope is not None:
            found["scope"] = scope
    if draw(st.booleans()):
        found["spare_blocks"] = draw(st.integers(0, 6))
        found["paused_blocks"] = draw(st.sampled_from([0, 0, 4, 8]))
    if able.chunked:
        found["chunked"] = one_in(3)
    if able.prefixes:
        found["prefix"] = draw(st.sampled_from([None, "REF_ZERO", "LRU"]))
    if able.modes:
        found["suspension"] = draw(st.sampled_from(["persist", "offload", "recompute"]))
    if able.asynchronous:
        found["scheduling"] = draw(st.sampled_from(["legacy", "async"]))
    if able.token_events:
        found["token_events"] = one_in(4)
    if able.speculative and one_in(6):
        found["speculative"] = draw(st.integers(1, 2))
        found["only_last"] = False
    latents = able.latents and one_in(12)
    if not latents and one_in(4):
        _with_other_attention(able, draw, found)
    if able.hybrid and not latents and one_in(6):
        found["hybrid"] = draw(st.integers(0, 6))
    wave_wide: dict[str, Any] = {}
    if not able.per_request:
        wave_wide["sampling"] = draw(st.sampled_from(SAMPLINGS))
        if not found["only_last"] and draw(st.booleans()):
            wave_wide["log_probs"] = "all"
    crowded = one_in(3)
    number = draw(st.integers(3, 6) if crowded else st.integers(1, 5))
    found["requests"] = tuple(
        plans(able, draw, all_log_probs=not found["only_last"], wave_wide=wave_wide)
        for _ in range(number)
    )
    found["happenings"] = happenings(able, draw)
    if crowded:
        _crowd(draw, found)
    if latents:
        _with_latents(draw, found)
    if found.get("hybrid") and found.get("prefix") and draw(st.booleans()):
        _with_cached_states(draw, found)
    if one_in(6):
        _with_odd_sampling(able, draw, found)
    if one_in(6):
        _with_never_served(able, draw, found)
    if one_in(6):
        found["lessons"] = tuple(
            draw(st.lists(st.sampled_from(["train", "train", "evaluate", "look"]), max_size=5))
        )
        found["microbatches"] = draw(st.integers(1, 2))
        found["captured"] = draw(st.booleans())
    if able.experts and not found.get("captured") and "speculative" not in found and one_in(8):
        found["experts"] = 4
        _without_captured_graphs(able, found)
    elif not found.get("captured") and one_in(4):
        found["recompute"] = "scope" not in found
    if one_in(10):
        found["dtype"] = "bfloat16"
    found["caller"] = draw(st.sampled_from([None, None, "no_grad", "inference_mode"]))
    if one_in(5):
        possible = [name for name, guest in COMPANY.items() if guest.possible()]
        found["company"] = draw(st.sampled_from([None, *possible]))
        if found["company"] == "own context":
            _without_captured_graphs(able, found)  # which refuse a class that they do not know
    configuration = Configuration(**{**found, **able.only})
    return kernels.stretched(configuration) if able.stretched else configuration
