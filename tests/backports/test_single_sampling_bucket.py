"""Sampling of one bucket: the tokens of the unpatched one, from fewer operators."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch import State, testing
from megatron_patch.backports.ours.single_sampling_bucket import SINGLE_SAMPLING_BUCKET
from megatron_patch.edits import is_known_by_digest
from megatron_patch.judge import judge
from megatron_patch.sources import read_source
from megatron_patch.testing.releases import parameters_of
from megatron_patch.verdicts import Verdict

from ..conftest import RELEASE, SOURCE, expected_state, not_in_source
from .checks import (
    REQUESTS,
    SPECS,
    Operators,
    as_it_is,
    assert_same_outputs,
    needs,
    proof,
    state_of,
    with_one_token_changed,
)

#: What a sampling function does before it changes logits.
COPY = "last_token_logits = last_token_logits.clone()"
PATCHED = RELEASE >= Version("0.16")
HAS_KERNEL = RELEASE >= Version("0.18")
TAKES_OUTPUT = RELEASE >= Version("0.19")

pytestmark = pytest.mark.usefixtures("device")
only_patched = pytest.mark.skipif(not PATCHED, reason=f"{RELEASE} has no sampling buckets")
only_kernel = pytest.mark.skipif(not HAS_KERNEL, reason=f"{RELEASE} has no sampling kernel")

VOCABULARY = 32
# Temperature, top-k and top-p.
GREEDY, RANDOM = (1.0, 1, 0.0), (1.0, 0, 0.0)
PARAMETERS = [
    GREEDY,
    RANDOM,
    (0.7, 0, 0.0),
    (1.0, 5, 0.0),
    (1.5, 3, 0.0),
    (1.0, 0, 0.9),
    (2, 0, 0.4),
]
each_parameters = pytest.mark.parametrize("parameters", PARAMETERS)


def test_state():
    testing.context_class()
    from megatron.core.inference.text_generation_controllers import (  # noqa: F401
        text_generation_controller,
    )

    assert state_of(SINGLE_SAMPLING_BUCKET) is expected_state(
        State.APPLIED if PATCHED else State.NOT_APPLICABLE
    )


# ---------------------------------------------------------------------------- one call


@pytest.fixture(scope="module")
def controller(device):
    """Megatron's controller, of an engine without requests."""
    return testing.build_engine(testing.EngineSpec(vocab_size=VOCABULARY)).controller


def kernel_of(controller) -> Any:
    """The method that samples given rows of logits; None where the controller itself does that."""
    return getattr(type(getattr(controller, "_sampling", None)), "sample_kernel", None)


def sampling_of(controller) -> Any:
    """The method that the patch edits, as it is now."""
    return kernel_of(controller) or type(controller)._dynamic_step_sample_logits


@dataclass
class Batch:
    logits: torch.Tensor
    """Of the requests, and of padding behind them."""
    parameters: list[tuple[float, int, float]]
    """One for each request."""
    paused: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    """Further arguments of the kernel."""

    @classmethod
    def of(cls, parameters, *, padding=0, dtype=torch.float32, seed=0, **fields) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(len(parameters) + padding, VOCABULARY, generator=generator) * 3
        device = testing.runtime.running().device
        return cls(logits.to(device=device, dtype=dtype), parameters, **fields)

    def sample(self, function, controller, n=None, watched=None) -> torch.Tensor:
        """What the method ``function`` samples, and into which tensor."""
        context = controller.inference_wrapped_model.inference_context
        context.paused_request_count = self.paused
        count = len(self.parameters)
        context.total_request_count = self.paused + count
        # 0.18 has those of active requests alone, as others have those of all requests.
        metadata, first = (
            (context.active_request_metadata, 0)
            if kernel_of(controller)
            else (controller._request_metadata, self.paused)
        )
        for name, values in zip(
            ("temperature", "top_k", "top_p"), zip(*self.parameters, strict=True), strict=True
        ):
            metadata[name][first : first + count] = torch.tensor(values, dtype=metadata[name].dtype)
        try:
            if not kernel_of(controller):
                controller._dynamic_step_sample_bookkeeping()
                with watched or nullcontext():
                    function(controller, self.logits[None])
                return controller._sampled_tokens_cuda[:count]
            flags = {"no_top_k", "no_top_p"} & {*parameters_of(kernel_of(controller))}
            arguments = {**dict.fromkeys(flags, False), **dict(self.options)}
            with watched or nullcontext():
                return function(controller._sampling, self.logits, n or count, context, **arguments)
        finally:
            context.paused_request_count = context.total_request_count = 0


def outcome(batch: Batch, function, controller, seed: int = 0):
    """The tokens, and the state of the generator afterwards."""
    controller.sampling_rng.manual_seed(seed)
    before = batch.logits.clone()
    tokens = batch.sample(function, controller).clone()
    assert batch.logits.equal(before)
    return tokens, controller.sampling_rng.get_state()


def assert_same(batch: Batch, one, other, controller, seed: int = 0) -> None:
    tokens, state = outcome(batch, one, controller, seed)
    expected, state_of_other = outcome(batch, other, controller, seed)
    assert tokens.dtype == expected.dtype == torch.int64
    assert tokens.equal(expected)
    assert state.equal(state_of_other)


def operators(batch: Batch, function, controller, n: int | None = None) -> list[str]:
    seen = Operators()
    batch.sample(function, controller, n, seen)
    return seen.names


@pytest.fixture(scope="module")
def both(controller):
    """The unpatched method and the patched one."""
    if SOURCE:
        pytest.skip("the source itself is patched")
    megatron_patch.uninstall()
    without = as_it_is(sampling_of(controller))
    megatron_patch.install()
    return without, sampling_of(controller)


BY_INDEX = {"aten::index", "aten::cat", "aten::index_put_"}


@only_patched
@each_parameters
def test_one_bucket_is_sampled_without_an_index(both, controller, parameters):
    batch = Batch.of([parameters] * 5, padding=3)
    without, patched = (operators(batch, function, controller) for function in both)
    assert BY_INDEX.issubset(without)
    assert BY_INDEX.isdisjoint(patched)
    assert len(patched) <= len(without) - len(BY_INDEX)


@proof
@pytest.mark.parametrize("parameters", [GREEDY, (1.0, 5, 0.0)])
def test_a_step_whose_requests_are_alike_has_no_index(controller, parameters):
    buckets = hasattr(controller, "_torch_sampling_buckets") or kernel_of(controller)
    needs(buckets, "buckets of requests that are sampled alike")
    batch = Batch.of([parameters] * 5, padding=3)
    assert BY_INDEX.isdisjoint(operators(batch, sampling_of(controller), controller))
    tokens, _ = outcome(batch, sampling_of(controller), controller)
    places = (batch.logits[:5] > batch.logits[:5].gather(1, tokens[:, None])).sum(-1)
    assert places.max() < parameters[1]


@only_patched
def test_several_buckets_are_sampled_as_ever(both, controller):
    batch = Batch.of([GREEDY, RANDOM, GREEDY])
    without, patched = (operators(batch, function, controller) for function in both)
    assert patched == without


parameters = st.sampled_from(PARAMETERS)


@only_patched
def test_any_batch_gets_the_tokens_of_the_unpatched_sampling(both, controller):
    without, patched = both
    buckets = set()

    @given(
        st.lists(parameters, min_size=1, max_size=6)
        | st.builds(lambda one, count: [one] * count, parameters, st.integers(1, 6)),
        st.integers(0, 4),
        st.integers(0, 2),
        st.sampled_from([torch.float32, torch.bfloat16]),
        st.booleans(),
        st.integers(0, 2**32 - 1),
    )
    def compare(of_requests, padding, paused, dtype, ties, seed):
        batch = Batch.of(of_requests, padding=padding, paused=paused, dtype=dtype, seed=seed)
        if ties:
            batch.logits.round_()
        assert_same(batch, patched, without, controller, seed)
        buckets.add(len(set(of_requests)))

    compare()
    assert {1, 2, 3} <= buckets


@only_patched
@each_parameters
def test_the_tokens_are_not_overwritten(controller, parameters):
    batch = Batch.of([parameters] * 5, padding=3)
    controller.sampling_rng.manual_seed(1)
    tokens = batch.sample(sampling_of(controller), controller)
    before = tokens.clone()
    assert tokens.shape == (5,)
    batch.logits.fill_(-1)
    assert tokens.equal(before)
    if HAS_KERNEL:  # other releases have one buffer for the tokens of all steps
        following = Batch.of([parameters] * 5, padding=3, seed=1)
        following.sample(sampling_of(controller), controller)
        assert tokens.equal(before)


@only_patched
@pytest.mark.skipif(HAS_KERNEL, reason=f"{RELEASE} has no buffer of its own")
@pytest.mark.parametrize("parameters", [[GREEDY] * 3, [GREEDY, RANDOM, GREEDY]])
def test_the_rest_of_the_buffer_stays(controller, parameters):
    buffer = controller._sampled_tokens_cuda
    buffer.fill_(-1)
    Batch.of(parameters, padding=2).sample(sampling_of(controller), controller)
    assert controller._sampled_tokens_cuda is buffer
    assert (buffer[:3] >= 0).all()
    assert (buffer[3:] == -1).all()


@pytest.mark.skipif(not TAKES_OUTPUT, reason=f"{RELEASE} returns a new tensor")
@each_parameters
@pytest.mark.parametrize("size", [4, 6])
def test_the_callers_tensor_gets_the_tokens(both, controller, parameters, size):
    output = torch.full((size,), -1, device=controller.sampling_rng.device)
    batch = Batch.of([parameters] * 4, padding=1, options=(("output", output),))
    assert batch.sample(both[1], controller) is output
    assert (output[:4] >= 0).all()
    assert (output[4:] == -1).all()
    assert_same(batch, *both, controller)
    assert_same(replace(batch, options=()), *both, controller)


@only_kernel
def test_gathered_rows_are_gathered_once(both, controller):
    rows = torch.tensor([3, 0, 6, 5, 0, 0], device=controller.sampling_rng.device)
    batch = Batch.of([RANDOM] * 4, padding=3, options=(("gather_indices", rows),))
    without, patched = (operators(batch, function, controller) for function in both)
    assert (without.count("aten::index"), patched.count("aten::index")) == (2, 1)
    assert_same(batch, *both, controller)


@only_kernel
@pytest.mark.parametrize("parameters", [[RANDOM] * 2, [RANDOM, GREEDY]])
def test_rows_of_speculative_tokens_are_sampled_as_ever(both, controller, parameters):
    requests = torch.tensor([0, 0, 0, 1], device=controller.sampling_rng.device)
    batch = Batch.of(parameters, padding=2, options=(("token_to_request_index", requests),))
    without, patched = (operators(batch, function, controller, n=4) for function in both)
    assert patched == without
    assert "isin" in " ".join(patched)


@only_kernel
def test_rows_without_a_request_are_left_alone_as_ever(both, controller):
    batch = Batch.of([RANDOM] * 3, padding=2)
    without, patched = (operators(batch, function, controller, n=5) for function in both)
    assert patched == without
    tokens = batch.sample(both[1], controller, n=5)
    assert tokens.shape == (5,)


# ----------------------------------------------------------------- functions of others

BANNED = 7


def banning(function: Callable[..., Any], position: int) -> Callable[..., Any]:
    """A function that takes a token out of the logits, in place, before ``function`` gets them."""

    def ban(*args: Any, **kwargs: Any) -> Any:
        args[position][:, BANNED] = -float("inf")
        return function(*args, **kwargs)

    return ban


def in_subclass(controller: Any, patch: pytest.MonkeyPatch) -> None:
    known = type(controller)
    own = {"_torch_sampling_func": banning(known._torch_sampling_func, 1)}
    patch.setattr(controller, "__class__", type("Own", (known,), own))


def on_instance(controller: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(controller, "_torch_sampling_func", banning(controller._torch_sampling_func, 0))


def on_class(controller: Any, patch: pytest.MonkeyPatch) -> None:
    if HAS_KERNEL:
        known = type(controller._sampling)
        own = staticmethod(banning(known.sample_from_logits, 0))
        patch.setattr(known, "sample_from_logits", own)
    else:
        known = type(controller)
        patch.setattr(known, "_torch_sampling_func", banning(known._torch_sampling_func, 1))


def on_filter(controller: Any, patch: pytest.MonkeyPatch) -> None:
    known = type(controller._sampling)
    patch.setattr(known, "filter_logits", staticmethod(banning(known.filter_logits, 0)))


PLACES = [on_class]
if PATCHED and not HAS_KERNEL:
    PLACES += [in_subclass, on_instance]
if RELEASE >= Version("0.19"):
    PLACES += [on_filter]


@only_patched
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("parameters", [GREEDY, RANDOM, (1.0, 5, 0.0)])
def test_a_function_of_somebody_else_may_write_to_its_logits(
    both, controller, monkeypatch, place, parameters
):
    batch = Batch.of([parameters] * 6, padding=2)
    batch.logits[:, BANNED] += 4
    place(controller, monkeypatch)
    without, patched = both
    assert_same(batch, patched, without, controller)
    tokens, _ = outcome(batch, patched, controller)
    # With a top-k of 1 the logits are not filtered.
    assert (BANNED in tokens.tolist()) == (place is on_filter and parameters is GREEDY)


@only_patched
@pytest.mark.parametrize("first", [False, True], ids=["after the patches", "before the patches"])
@pytest.mark.parametrize("only_last", [False, True], ids=["all logits", "only last logits"])
@pytest.mark.parametrize("place", PLACES)
def test_the_engine_reports_log_probs_of_what_the_model_said(
    unpatched, monkeypatch, place, only_last, first
):
    """Also where another function writes to the logits, installed before the patches or after."""

    spec = testing.EngineSpec(materialize_only_last_token_logits=only_last)

    def answers(*, patched: bool) -> tuple[Any, ...]:
        engine = testing.build_engine(spec)
        with monkeypatch.context() as patch:
            if first:
                place(engine.controller, patch)
            if patched:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", megatron_patch.MegatronPatchWarning)
                    megatron_patch.install()
            if not first:
                place(engine.controller, patch)
            requests = [replace(request, sampling={"top_k": 5}) for request in REQUESTS]
            sampling = {"return_log_probs": True, "skip_prompt_log_probs": only_last}
            decoded = testing.decode(engine, requests, sampling=sampling)
            records = [record.merge() for record in decoded.records]
            megatron_patch.uninstall()
        logits = [step.tolist() for step in decoded.logits]
        return decoded.tokens, logits, [record.generated_log_probs for record in records]

    without = answers(patched=False)
    assert answers(patched=True) == without
    assert not any(BANNED in tokens for tokens in without[0])


# -------------------------------------------------------------------------- the engine

AT_RANDOM = {"top_k": 0, "temperature": 5.0}
SAMPLINGS = {
    "greedy": [{}],
    "random": [AT_RANDOM],
    "top-k": [{"top_k": 9, "temperature": 3.0}],
    "top-p": [{"top_k": 0, "top_p": 0.9, "temperature": 4.0}],
    "mixed": [AT_RANDOM, {}, {"top_k": 0, "top_p": 0.9, "temperature": 4.0}],
}


def run(spec: testing.EngineSpec, samplings: list[dict[str, Any]]) -> testing.Decoded:
    requests = [
        replace(request, sampling=samplings[index % len(samplings)])
        for index, request in enumerate((*REQUESTS, *REQUESTS))
    ]
    return testing.decode(testing.build_engine(spec), requests)


def run_all(spec: testing.EngineSpec) -> dict[str, testing.Decoded]:
    return {name: run(spec, samplings) for name, samplings in SAMPLINGS.items()}


@only_patched
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tokens_and_logits_are_bit_identical(unpatched, spec):
    try:
        without = run_all(spec)
    except testing.UnsupportedError as error:
        pytest.skip(str(error))
    megatron_patch.install()
    patched = run_all(spec)
    wanted = [request.num_tokens for request in (*REQUESTS, *REQUESTS)]
    for name, decoded in patched.items():
        assert_same_outputs(decoded, without[name])
        assert [len(tokens) for tokens in decoded.tokens] == wanted
    assert patched["greedy"].tokens[:3] == patched["greedy"].tokens[3:]
    assert patched["random"].tokens[:3] != patched["random"].tokens[3:]


# -------------------------------------------------------------------------- the record


def targets() -> list[str]:
    variant = judge(SINGLE_SAMPLING_BUCKET).variant
    assert variant is not None
    return list(dict.fromkeys(e.target for e in variant.edits if is_known_by_digest(e)))


@only_patched
@not_in_source
def test_one_changed_token_in_the_target_is_drifted():
    target = targets()[0]
    judgement = judge(SINGLE_SAMPLING_BUCKET, with_one_token_changed(target))
    assert judgement.verdict is Verdict.DRIFTED
    assert target in judgement.reason


@only_patched
@not_in_source
def test_where_sampling_does_not_copy_the_logits_it_does_not_apply():
    def read(module):
        text = read_source(module)
        return text and text.replace(COPY, "pass")

    judgement = judge(SINGLE_SAMPLING_BUCKET, read)
    assert judgement.verdict is Verdict.DRIFTED
    assert targets()[-1] in judgement.reason
