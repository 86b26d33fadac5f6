"""Which sampling parameters can be sampled with, and which requests fail alone."""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports.ours.sampling_parameters import SAMPLING_PARAMETERS
from megatron_patch.testing.decoding import add_request, has_work, stepper
from megatron_patch.testing.releases import parameters_of

from ..conftest import RELEASE
from .checks import SPECS, assert_state_of_record, needs, proof

OWN_PARAMETERS = RELEASE >= Version("0.16")
HAS_BACKENDS = RELEASE >= Version("0.18")
PROCESSES_LOG_PROBS = RELEASE >= Version("0.19")

pytestmark = pytest.mark.usefixtures("device")
only_own = pytest.mark.skipif(
    not OWN_PARAMETERS, reason=f"{RELEASE} has the same sampling parameters for all requests"
)
only_backends = pytest.mark.skipif(not HAS_BACKENDS, reason=f"{RELEASE} has one sampler")

VOCABULARY = 32

# Temperature, top-k and top-p.
GREEDY = (1.0, 1, 0.0)
TAKEN = [
    GREEDY,
    (1.0, 0, 0.0),
    (0.7, -1, 0.0),
    (1.0, 5, 0.0),
    (1.5, VOCABULARY - 1, 0.0),
    (1.0, 0, 0.9),
    (2.0, 0, 0.4),
    (1.0, 0, 1.0),
    (1e-30, 0, 0.0),
]
REFUSED = [
    (1.0, 5, 0.9),
    (0.7, 20, 0.5),
    (1.0, 5, 1.0),
    (1.0, 1, 1.0),
    (1.0, 1, 0.5),
    (1.0, 5, 1),
    (1.0, 0, 1),
    (1.0, VOCABULARY + 1, 0.0),
    (1.0, 10 * VOCABULARY, 0.9),
    (0.0, 0, 0.0),
    (0, 0, 0.0),
    (0.0, 5, 0.0),
    (0.0, 0, 0.9),
    (0.0, 5, 0.9),
    (1e-40, 0, 0.0),
    (1e-40, 5, 0.9),
]


@pytest.fixture(scope="module")
def controller(device: Any) -> Any:
    """Megatron's controller, of an engine without requests."""
    return testing.build_engine(testing.EngineSpec(vocab_size=VOCABULARY)).controller


def logits_of(seed: int, rows: int = 64, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, VOCABULARY, generator=generator) * 3
    return logits.to(device=testing.runtime.running().device, dtype=dtype)


def sample(
    controller: Any, logits: torch.Tensor, parameters: tuple[float, int, float], seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the static and the dynamic engine sample, and the state of the generator afterwards."""
    from megatron.core.inference.sampling_params import SamplingParams

    temperature, top_k, top_p = parameters
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    generator = getattr(controller, "sampling_rng", torch.default_generator)
    generator.manual_seed(seed)
    before = logits.clone()
    tokens = controller.sample_from_logits(logits, params, vocab_size=VOCABULARY)
    assert logits.equal(before)
    return tokens, generator.get_state()


def expected(
    logits: torch.Tensor, parameters: tuple[float, int, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens can be sampled, and the probability of each, by the definition in float64."""
    temperature, top_k, top_p = parameters
    logits = logits.double()
    if temperature == 0 or top_k == 1:
        only = logits.argmax(-1, keepdim=True)
        probabilities = torch.zeros_like(logits).scatter(1, only, 1.0)
        return probabilities > 0, probabilities
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature
    probabilities, order = scaled.softmax(-1).sort(descending=True)
    if 0 < top_k < VOCABULARY:
        probabilities[:, top_k:] = 0
        probabilities /= probabilities.sum(-1, keepdim=True)
    if top_p:
        more_likely = probabilities.cumsum(-1) - probabilities
        probabilities[more_likely > top_p] = 0
        probabilities /= probabilities.sum(-1, keepdim=True)
    probabilities = torch.zeros_like(scaled).scatter(1, order, probabilities)
    return probabilities > 0, probabilities


def test_state(controller):
    assert_state_of_record(SAMPLING_PARAMETERS)


# ------------------------------------------------------------------------ the sampler


@proof
@pytest.mark.parametrize("parameters", REFUSED)
def test_any_combination_is_sampled(controller, parameters):
    logits = logits_of(1)
    tokens, _ = sample(controller, logits, parameters)
    allowed, _ = expected(logits, parameters)
    assert allowed.gather(1, tokens[:, None]).all()


def multiply_by_reciprocal(logits: torch.Tensor, divisor: float) -> torch.Tensor:
    """What ``div_()`` does with a number on a GPU, where it rounds the reciprocal to float32."""
    reciprocal = torch.tensor(1.0) / torch.tensor(divisor, dtype=torch.float32)
    return logits.copy_(logits.float() * reciprocal.to(logits.device))


@proof
@pytest.mark.parametrize("parameters", [(1e-40, 0, 0.0), (1e-40, 5, 0.9), (1e-45, 0, 0.9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tiny_temperature_is_sampled_on_a_gpu(controller, monkeypatch, parameters, dtype):
    monkeypatch.setattr(torch.Tensor, "div_", multiply_by_reciprocal)
    logits = logits_of(1, dtype=dtype)
    tokens, _ = sample(controller, logits, parameters)
    assert logits.gather(1, tokens[:, None])[:, 0].equal(logits.amax(-1))


@pytest.mark.parametrize("parameters", [*TAKEN, *REFUSED])
def test_tokens_come_from_the_filtered_distribution(controller, parameters):
    logits = logits_of(2, rows=1)
    rows = 20_000
    tokens, _ = sample(controller, logits.expand(rows, -1), parameters)
    allowed, probabilities = expected(logits, parameters)
    counts = tokens.bincount(minlength=VOCABULARY)
    assert (counts[~allowed[0]] == 0).all()
    shares = (counts / rows).numpy(force=True)
    assert shares == pytest.approx(probabilities[0].numpy(force=True), abs=0.02)
    # Each token that the filters leave can be drawn.
    assert (counts[probabilities[0] > 0.005] > 0).all()


SAME = [
    ((1.0, 5, 1.0), (1.0, 5, 0.0)),
    ((0.7, 20, 1), (0.7, 20, 0.0)),
    ((1.0, VOCABULARY, 0.9), (1.0, 0, 0.9)),
    ((1.0, 10 * VOCABULARY, 0.0), (1.0, 0, 0.0)),
    ((1.0, -1, 0.9), (1.0, 0, 0.9)),
    ((0.0, 0, 0.9), GREEDY),
    ((0, 5, 0.9), GREEDY),
    ((0.5, 1, 0.9), GREEDY),
]


@pytest.mark.parametrize(("one", "other"), SAME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_filters_nothing_changes_no_token(controller, one, other, dtype):
    for seed in range(20):
        logits = logits_of(seed, dtype=dtype)
        tokens, state = sample(controller, logits, one, seed)
        same, same_state = sample(controller, logits, other, seed)
        assert tokens.equal(same)
        assert state.equal(same_state)


#: A number below the least float32 reaches the sampler of 0.16 or later as 0.
TINY = [1e-31, 1e-38, 1e-45, *([1e-50] if RELEASE < Version("0.16") else [])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", TINY)
def test_a_tiny_temperature_is_as_good_as_greedy(controller, temperature, dtype):
    logits = logits_of(4, dtype=dtype)
    tokens, _ = sample(controller, logits, (temperature, 0, 0.0))
    assert logits.gather(1, tokens[:, None])[:, 0].equal(logits.amax(-1))


def test_what_was_taken_is_sampled_as_ever(unpatched, controller):
    """Bit for bit, and with the same random numbers."""
    found = []

    def draws() -> list[Any]:
        del found[:]

        @given(
            st.sampled_from(TAKEN) | st.tuples(st.floats(0.1, 9), st.just(0), st.floats(0, 1)),
            st.sampled_from([torch.float32, torch.bfloat16]),
            st.booleans(),
            st.integers(0, 2**32 - 1),
        )
        def draw(parameters, dtype, ties, seed):
            logits = logits_of(seed, rows=4, dtype=dtype)
            if ties:
                logits.round_()
            tokens, state = sample(controller, logits, parameters, seed)
            found.append((parameters, tokens.tolist(), state.tolist()))

        draw()
        return list(found)

    without = draws()
    megatron_patch.install()
    assert draws() == without
    assert len(without) > 20


@pytest.mark.skipif(not PROCESSES_LOG_PROBS, reason=f"{RELEASE} has log probs of the model alone")
@pytest.mark.parametrize("parameters", [*TAKEN, *REFUSED])
def test_processed_log_probs_are_those_of_what_is_sampled(controller, parameters):
    from megatron.core.inference.sampling.torch_sampling import TorchSampling

    logits = logits_of(3)
    temperature, top_k, top_p = parameters
    filtered = TorchSampling.filter_logits(
        logits, temperature, top_k, float(top_p), vocab_size=VOCABULARY
    )
    allowed, probabilities = expected(logits, parameters)
    log_probs = filtered.log_softmax(-1)
    assert log_probs.exp().double().allclose(probabilities, atol=1e-5)
    assert (log_probs[~allowed] < -80).all()


# ------------------------------------------------------------------------- the engine

inf, nan = math.inf, math.nan

#: Parameters that can be sampled with, and other parameters that have to give the same, if any.
MEANT: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"top_k": 20, "top_p": 1.0}, {"top_k": 20}),
    ({"top_k": 20, "top_p": 0.9}, None),
    ({"top_k": 1, "top_p": 1.0}, {}),
    ({"top_k": 1, "top_p": 0.9}, {}),
    ({"top_k": 128}, {"top_k": 0}),
    ({"top_k": 200}, {"top_k": 0}),
    ({"top_k": 2**31}, {"top_k": 0}),
    ({"top_k": 2**63 - 1, "top_p": 0.5}, {"top_k": 0, "top_p": 0.5}),
    ({"top_k": inf}, {"top_k": 0}),
    ({"top_k": -1}, {"top_k": 0}),
    ({"top_k": -1, "top_p": 0.5}, {"top_k": 0, "top_p": 0.5}),
    ({"top_k": 0, "temperature": 0}, {}),
    ({"top_k": 0, "temperature": -0.0}, {}),
    ({"top_k": 5, "temperature": 0.0}, {}),
    ({"top_k": 0, "top_p": 0.9, "temperature": 0.0}, {}),
    ({"top_k": 20, "top_p": 0.9, "temperature": 1e-50}, {}),
    ({"top_k": 0, "temperature": 1e-40}, {"top_k": 0, "temperature": 1e-30}),
    ({"top_k": 0, "temperature": inf}, None),
    ({"top_k": 0, "top_p": 1}, {"top_k": 0, "top_p": 1.0}),
]

#: Meaningless values, by the name of the parameter.
MEANINGLESS: list[dict[str, Any]] = [
    {"temperature": nan},
    {"temperature": -1.0},
    {"temperature": -inf},
    {"temperature": None},
    {"temperature": "1"},
    {"top_k": nan},
    {"top_k": -2},
    {"top_k": None},
    {"top_k": "20"},
    {"top_p": nan},
    {"top_p": 1.5},
    {"top_p": -0.1},
    {"top_p": inf},
    {"top_p": None},
    {"top_p": [0.5]},
    {"top_n_logprobs": 129, "return_log_probs": True, "skip_prompt_log_probs": True},
]

#: Of other requests, one of which is sampled at random.
OTHERS = [
    testing.Request((9, 10, 11), 6),
    testing.Request((3, 1, 2), 5, sampling={"top_k": 7, "temperature": 2.0}),
]


class FlashInfer:
    """Stands in for flashinfer's kernels, by their documentation. Top-k comes first."""

    def __init__(self) -> None:
        self.sampling = self

    @staticmethod
    def top_k_top_p_sampling_from_probs(probs, top_k, top_p, generator=None, **options):
        ordered, order = probs.sort(descending=True)
        places = torch.arange(probs.shape[1], device=probs.device)
        # The kernels take it for an unsigned number.
        ordered = ordered.masked_fill(places >= top_k.long()[:, None] % 2**32, 0.0)
        ordered = ordered / ordered.sum(-1, keepdim=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p[:, None], 0.0)
        chosen = ordered.multinomial(1, generator=generator)
        return order.gather(1, chosen)[:, 0].int()

    def sampling_from_probs(self, probs, **options):
        return probs.multinomial(1, generator=options["generator"])[:, 0].int()

    def top_p_sampling_from_probs(self, probs, top_p, **options):
        every = torch.full_like(top_p, probs.shape[1])
        return self.top_k_top_p_sampling_from_probs(probs, every, top_p, **options)

    def top_k_sampling_from_probs(self, probs, top_k, **options):
        every = torch.ones(probs.shape[0], device=probs.device)
        return self.top_k_top_p_sampling_from_probs(probs, top_k, every, **options)

    def top_k_top_p_sampling_from_logits(self, logits, top_k, top_p, **options):
        return self.top_k_top_p_sampling_from_probs(logits.softmax(-1), top_k, top_p, **options)


@pytest.fixture
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    if not HAS_BACKENDS:
        pytest.skip(f"{RELEASE} has one sampler")
    module = importlib.import_module("megatron.core.inference.sampling.flashinfer_sampling")
    monkeypatch.setitem(sys.modules, "flashinfer", FlashInfer())
    monkeypatch.setattr(module, "flashinfer", FlashInfer())


BY_FLASHINFER = testing.EngineSpec(options={"sampling_backend": "flashinfer"})


def run(
    requests: list[testing.Request], spec: testing.EngineSpec = SPECS["eager"]
) -> tuple[Any, list[Any]]:
    """The engine, and the last part of each request's record."""
    engine = testing.build_engine(spec)
    futures = [add_request(engine, request, {}) for request in requests]
    step = stepper(engine, {})
    for _ in range(64):
        if not has_work(engine):
            break
        step()
    assert engine.context.total_request_count == 0
    return engine, [last_part(future.result()) for future in futures]


def last_part(found: Any) -> Any:
    """The last part of a record, which requests have since 0.16; before, the request itself."""
    return found[-1] if hasattr(found, "requests") else found


def asked(sampling: dict[str, Any]) -> testing.Request:
    return testing.Request((1, 2, 3, 4, 5), 8, sampling=sampling)


def tokens_of(parts: list[Any]) -> list[list[int]]:
    assert {part.status.name for part in parts} == {"COMPLETED"}
    return [part.generated_tokens for part in parts]


def sampling_params_class() -> Any:
    from megatron.core.inference.sampling_params import SamplingParams

    return SamplingParams


def needs_own_parameters(engine_class: Any) -> None:
    needs(
        "sampling_params" in parameters_of(engine_class.add_request),
        "sampling parameters of each request",
    )


@proof
@pytest.mark.parametrize(("sampling", "like"), MEANT, ids=str)
def test_the_engine_samples_what_means_something(sampling, like):
    needs_own_parameters(testing.releases.engine_class())
    (tokens,) = tokens_of(run([asked(sampling)])[1])
    assert len(tokens) == 8
    if like is not None:
        assert [tokens] == tokens_of(run([asked(like)])[1])


@only_own
def test_the_engine_samples_them_beside_each_other():
    requests = [asked(sampling) for sampling, _ in MEANT]
    for batch in (requests[:6], requests[6:12], requests[12:]):
        *tokens, other, another = tokens_of(run([*batch, *OTHERS])[1])
        assert {len(found) for found in tokens} == {8}
        assert (len(other), len(another)) == (6, 5)


@only_own
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_greedy_request_is_one_however_it_says_so(spec):
    greedy = [sampling for sampling, like in MEANT if like == {}]
    try:
        _, parts = run([asked(sampling) for sampling in ({}, *greedy[:6])], spec)
    except testing.UnsupportedError as error:
        pytest.skip(str(error))
    first, *others = tokens_of(parts)
    assert others == [first] * len(others)


@proof
@pytest.mark.parametrize("sampling", MEANINGLESS, ids=str)
def test_what_means_nothing_fails_alone(sampling):
    needs_own_parameters(testing.releases.engine_class())
    needs({*sampling} <= {*parameters_of(sampling_params_class())}, f"{[*sampling]}")
    name, value = next(iter(sampling.items()))
    (first, second) = OTHERS
    _, (one, failed, other) = run([first, asked(sampling), second])
    assert tokens_of([one, other]) == tokens_of(run(OTHERS)[1])
    assert failed.status.name == "FAILED"
    assert failed.failed()
    assert failed.generated_tokens == []
    (error,) = (e.payload for e in failed.events if e.type.name == "ERROR_NONTRANSIENT")
    assert f"{name}={value!r}" in str(error)
    assert not error.is_transient


@only_own
def test_each_meaningless_parameter_is_named():
    _, (failed,) = run(
        [
            asked(
                {
                    "temperature": -1,
                    "top_k": "a",
                    "top_p": 2,
                    "top_n_logprobs": 1,
                    "return_log_probs": True,
                    "skip_prompt_log_probs": True,
                }
            )
        ]
    )
    errors = [str(e.payload) for e in failed.events if e.type.name == "ERROR_NONTRANSIENT"]
    assert len(errors) == 3
    for error, name in zip(errors, ("temperature=-1", "top_k='a'", "top_p=2"), strict=True):
        assert name in error


@only_own
def test_the_error_gets_to_a_client():
    """Over the coordinator a failed request is sent as bytes."""
    _, (failed,) = run([asked({"top_p": 1.5})])
    again = type(failed).deserialize(failed.serialize())
    (error,) = (e.payload for e in again.events if e.type.name == "ERROR_NONTRANSIENT")
    assert "top_p=1.5 is not a number from 0 to 1" in error.message


@only_own
def test_the_callers_parameters_stay_what_they_were():
    from megatron.core.inference.sampling_params import SamplingParams

    engine = testing.build_engine(testing.EngineSpec())
    params = SamplingParams(
        temperature=0.0, top_k=200, top_p=1.0, num_tokens_to_generate=2, termination_id=-1
    )
    before = vars(params).copy()

    async def add() -> None:
        engine.add_request(7, [1, 2, 3], params)

    engine._loop.run_until_complete(add())
    assert vars(params) == before


@only_backends
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "at once"])
def test_flashinfer_samples_what_means_something(flashinfer, alone):
    requests = [asked(sampling) for sampling, _ in MEANT]
    batches = [[request] for request in requests[1:4]] if alone else [requests[:8], requests[8:16]]
    greedy = tokens_of(run([asked({})])[1])[0]
    for batch in batches:
        for request, found in zip(batch, tokens_of(run(batch, BY_FLASHINFER)[1]), strict=True):
            assert len(found) == 8
            likes = [like for sampling, like in MEANT if sampling is request.sampling]
            assert found == greedy or likes != [{}]


@only_backends
def test_flashinfer_gets_nothing_meaningless(flashinfer):
    requests = [asked(sampling) for sampling in MEANINGLESS]
    _, (one, *failed, other) = run([OTHERS[0], *requests, OTHERS[1]], BY_FLASHINFER)
    assert len(tokens_of([one, other])) == 2
    assert {part.status.name for part in failed} == {"FAILED"}
