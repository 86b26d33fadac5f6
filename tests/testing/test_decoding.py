"""The engine from end to end, against the same model without it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch

import megatron_patch
from megatron_patch import testing
from megatron_patch.testing import EngineSpec, Request, graph_counts
from megatron_patch.testing.releases import parameters_of, set_inference_mode

pytestmark = pytest.mark.usefixtures("device")

SPEC = EngineSpec()

# They join before steps 0, 2, 3 and 5 and end after different steps. Lengths of prompts are on
# both sides of a block of 16 tokens, and one needs more than two blocks.
REQUESTS = (
    Request(prompt=(1, 2, 3), num_tokens=12),
    Request(prompt=tuple(range(40)), num_tokens=5, arrival_step=2),
    Request(prompt=(7, 8), num_tokens=20, arrival_step=3),
    Request(prompt=(9,) * 16, num_tokens=1, arrival_step=5),
    Request(prompt=tuple(range(20, 50)), num_tokens=10, arrival_step=5),
    Request(prompt=tuple(range(60, 75)), num_tokens=8, arrival_step=3),
)
STEPS = 23


@pytest.fixture(scope="module")
def expected(device: Any) -> tuple[tuple[int, ...], ...]:
    """The tokens of ``REQUESTS``, by the model of ``SPEC`` without an engine."""
    return testing.reference_decode(testing.build_model(SPEC), REQUESTS)


def copied(copy: Callable[[Any], Any]) -> str:
    """What becomes of a copy of the context of an engine that has decoded."""
    engine = testing.build_engine(SPEC)
    testing.decode(engine, REQUESTS)
    try:
        copy(engine.context)
    except Exception as error:
        return repr(error)
    return "a copy"


@pytest.mark.parametrize("copy", [pickle.dumps, deepcopy], ids=["pickle", "deepcopy"])
def test_with_patches_a_context_is_copied_as_it_is_without(
    unpatched: None, copy: Callable[[Any], Any]
) -> None:
    released = copied(copy)
    megatron_patch.install()
    assert copied(copy) == released
    megatron_patch.uninstall()


def test_the_model_is_worth_testing_with(expected: tuple[tuple[int, ...], ...]) -> None:
    """An error in attention must not be able to hide behind tokens that repeat anyway."""
    tokens = [token for sequence in expected for token in sequence]
    assert len(set(tokens)) > len(tokens) // 3


def test_tokens_are_those_of_the_model_alone(expected: tuple[tuple[int, ...], ...]) -> None:
    seen = []

    def on_step(engine: Any, step: int) -> None:
        seen.append((step, engine.context.total_request_count))

    decoded = testing.decode(testing.build_engine(SPEC), REQUESTS, on_step=on_step)

    assert decoded.tokens == expected
    assert decoded.steps == len(decoded.logits) == len(decoded.step_seconds) == STEPS
    assert all(seconds > 0 for seconds in decoded.step_seconds)
    assert [step for step, _ in seen] == list(range(STEPS))
    assert {count for _, count in seen} >= {1, 2, 4}
    assert len(decoded.records) == len(REQUESTS)


def test_the_last_logits_are_the_choice(expected: tuple[tuple[int, ...], ...]) -> None:
    decoded = testing.decode(testing.build_engine(SPEC), REQUESTS[:1])

    assert all(logits.shape == (1, 1, 128) for logits in decoded.logits)
    assert tuple(int(logits.argmax()) for logits in decoded.logits) == expected[0]


def test_an_engine_can_be_used_again(expected: tuple[tuple[int, ...], ...]) -> None:
    engine = testing.build_engine(SPEC)
    first = testing.decode(engine, REQUESTS)
    second = testing.decode(engine, REQUESTS, capture_logits=False)
    third = testing.decode(engine, REQUESTS)

    assert first.tokens == second.tokens == third.tokens == expected
    assert second.logits == ()
    assert all(map(torch.equal, first.logits, third.logits))


@pytest.mark.parametrize("wrong", [(), (0,), (4, 5), range(12)], ids=str)
def test_the_reference_does_not_depend_on_what_is_likely(
    expected: tuple[tuple[int, ...], ...], wrong: Sequence[int]
) -> None:
    model = testing.build_model(SPEC)
    likely = [[*tokens] for tokens in expected]
    likely[3] = []
    for place in wrong:
        likely[0][place] = (likely[0][place] + 1) % SPEC.vocab_size
    passes = []
    model.register_forward_hook(lambda module, args, logits: passes.append(logits.shape[1]))

    found = testing.reference_decode(model, REQUESTS[:4], [*likely[:2], None, likely[3]])
    assert found == expected[:4]
    # The last place is not looked at: nothing comes after it.
    of_the_first = 1 + len({*wrong} - {11})
    assert len(passes) == of_the_first + 1 + REQUESTS[2].num_tokens + 1


def test_the_reference_does_not_depend_on_an_engine(
    expected: tuple[tuple[int, ...], ...],
) -> None:
    engine = testing.build_engine(SPEC)
    model = engine.controller.inference_wrapped_model.model

    assert testing.reference_decode(model, REQUESTS[:2]) == expected[:2]
    assert testing.decode(engine, REQUESTS[:2]).tokens == expected[:2]


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, position_embedding_type="rope"),
        replace(SPEC, materialize_only_last_token_logits=False),
        replace(SPEC, num_layers=1, hidden_size=32, num_attention_heads=2, vocab_size=96, seed=3),
        replace(SPEC, block_size_tokens=64, max_requests=4),
        replace(SPEC, buffer_size_gb=0.0003),  # fewer blocks than the requests want
        replace(SPEC, num_cuda_graphs=2, max_requests=32),
        replace(SPEC, enable_prefix_caching=True),
        replace(SPEC, enable_chunked_prefill=True),
        replace(SPEC, num_speculative_tokens=1, materialize_only_last_token_logits=False),
    ],
    ids=lambda spec: ",".join(
        name for name, value in vars(spec).items() if value != getattr(SPEC, name)
    ),
)
def test_every_kind_of_engine(spec: EngineSpec) -> None:
    try:
        engine = testing.build_engine(spec)
    except testing.UnsupportedError as error:
        pytest.skip(str(error))
    decoded = testing.decode(engine, REQUESTS)

    alone = testing.build_model(replace(spec, num_cuda_graphs=None))
    assert decoded.tokens == testing.reference_decode(alone, REQUESTS, decoded.tokens)


@pytest.fixture
def graph_scope(request: pytest.FixtureRequest) -> Iterator[str]:
    """The scope of a graph. Graphs of other engines are dropped, because 0.16 mixes up scopes."""
    testing.drop_cuda_graphs()
    yield request.param
    testing.drop_cuda_graphs()


@pytest.mark.parametrize("graph_scope", ["layer", "block"], indirect=True)
@pytest.mark.parametrize("for_prefill", [False, True], ids=["decode", "prefill"])
def test_graphs_are_replayed(
    expected: tuple[tuple[int, ...], ...], graph_scope: str, for_prefill: bool
) -> None:
    spec = replace(SPEC, num_cuda_graphs=2, max_requests=32, cuda_graph_scope=graph_scope)
    if for_prefill:
        spec = replace(spec, options={"use_cuda_graphs_for_non_decode_steps": True})
    try:
        with graph_counts.counted() as built:
            engine = testing.build_engine(spec)
    except testing.UnsupportedError as error:
        pytest.skip(str(error))
    assert built.captures

    for _ in range(2):
        assert testing.decode(engine, REQUESTS).tokens == expected

    with graph_counts.counted() as count:
        decoded = testing.decode(engine, REQUESTS[:1])
    assert decoded.tokens == expected[:1]
    assert count.captures == 0
    in_one_step = SPEC.num_layers if graph_scope == "layer" else 1
    with_graph = decoded.steps if for_prefill else decoded.steps - 1
    assert count.replays == with_graph * in_one_step


@pytest.mark.parametrize("graph_scope", ["layer", "block"], indirect=True)
@pytest.mark.parametrize("mode", [None, "persist", "recompute"])
def test_suspended_and_resumed_with_graphs(
    expected: tuple[tuple[int, ...], ...], graph_scope: str, mode: str | None
) -> None:
    def on_step(engine: Any, step: int) -> None:
        if step == 4:
            testing.suspend(engine)
        if step == 6:
            testing.resume(engine)

    spec = replace(SPEC, num_cuda_graphs=1, cuda_graph_scope=graph_scope)
    try:
        engine = testing.build_engine(replace(spec, kv_cache_management_mode=mode))
        with graph_counts.counted() as count:
            decoded = testing.decode(engine, REQUESTS, on_step=on_step)
    except testing.UnsupportedError as error:
        pytest.skip(str(error))

    assert decoded.tokens == expected
    assert count.replays
    if mode == "recompute":  # in newly allocated memory
        assert count.captures


def test_graphs_are_not_captured_unless_asked_for(device: Any) -> None:
    spec = replace(SPEC, num_cuda_graphs=1)
    with graph_counts.counted() as count:
        engine = testing.build_engine(spec)
        testing.decode(engine, REQUESTS[:1])
    assert bool(count.captures) == (device.type == "cuda")

    with pytest.raises(ValueError, match="'layer', 'block'"):
        testing.build_engine(replace(spec, cuda_graph_scope="model"))


def test_bfloat16_is_near_the_model_alone(device: Any) -> None:
    """Logits that are nearly equal may change places, so the tokens cannot be compared."""
    spec = replace(SPEC, dtype="bfloat16")
    request = REQUESTS[0]

    decoded = testing.decode(testing.build_engine(spec), [request])

    sequence = torch.tensor([request.prompt + decoded.tokens[0][:-1]], device=device)
    positions = torch.arange(sequence.shape[1], device=device)[None]
    hidden = torch.ones(*[sequence.shape[1]] * 2, dtype=torch.bool, device=device).triu(1)
    model = testing.build_model(spec)
    set_inference_mode(False)  # the engine switched it on, and the model alone does not run in it
    with torch.inference_mode():
        alone = model(sequence, positions, hidden[None, None])[0, len(request.prompt) - 1 :]
    torch.testing.assert_close(torch.cat(decoded.logits, dim=1)[0], alone, atol=0.1, rtol=0.05)


def test_prompts_longer_than_a_step_are_split() -> None:
    spec = replace(SPEC, enable_chunked_prefill=True)
    requests = (*REQUESTS, Request(prompt=tuple(range(100)), num_tokens=6, arrival_step=1))
    try:
        engine = testing.build_engine(spec)
    except testing.UnsupportedError as error:
        pytest.skip(str(error))

    tokens = testing.decode(engine, requests).tokens
    assert tokens == testing.reference_decode(testing.build_model(spec), requests, tokens)


@pytest.mark.parametrize("steps_suspended", [0, 3])
@pytest.mark.parametrize("mode", [None, "persist", "offload", "recompute"])
def test_suspended_and_resumed(
    expected: tuple[tuple[int, ...], ...], mode: str | None, steps_suspended: int
) -> None:
    def on_step(engine: Any, step: int) -> None:
        if step == 4:
            testing.suspend(engine)
        if step == 4 + steps_suspended:
            testing.resume(engine)

    try:
        engine = testing.build_engine(replace(SPEC, kv_cache_management_mode=mode))
        decoded = testing.decode(engine, REQUESTS, on_step=on_step)
    except testing.UnsupportedError as error:
        pytest.skip(str(error))

    assert decoded.tokens == expected
    assert decoded.steps >= STEPS
    if mode == "recompute":
        assert any(len(record.requests) > 1 for record in decoded.records)


def test_more_sampling_parameters() -> None:
    spec = replace(SPEC, materialize_only_last_token_logits=False)
    decoded = testing.decode(
        testing.build_engine(spec), REQUESTS[:1], sampling={"return_log_probs": True}
    )

    (record,) = decoded.records
    request = getattr(record, "requests", [record])[-1]
    # 0.14 and 0.15 do not return the log prob of the first token.
    missing = REQUESTS[0].num_tokens - len(request.generated_log_probs)
    assert missing in (0, 1)
    assert all(value <= 0 for value in request.generated_log_probs)
    with pytest.raises(testing.UnsupportedError, match="no sampling parameter 'mood'"):
        testing.decode(testing.build_engine(spec), REQUESTS[:1], sampling={"mood": 1})


def test_a_request_can_have_sampling_parameters_of_its_own() -> None:
    spec = replace(SPEC, materialize_only_last_token_logits=False)
    engine = testing.build_engine(spec)
    if "sampling_params" not in parameters_of(engine.add_request):
        with pytest.raises(testing.UnsupportedError, match="no sampling parameters for a single"):
            testing.decode(engine, [replace(REQUESTS[0], sampling={"return_log_probs": True})])
        return
    for wanted in (True, False):
        sampling = {"return_log_probs": not wanted}
        own = replace(REQUESTS[0], sampling={"return_log_probs": wanted})
        (record,) = testing.decode(engine, [own], sampling=sampling).records
        assert bool(record.requests[-1].generated_log_probs) == wanted


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(prompt=(), num_tokens=1), "needs a prompt"),
        (Request(prompt=(1,), num_tokens=-1), "no negative number"),
        (Request(prompt=(1,), num_tokens=1, arrival_step=-1), "no negative number"),
        (Request(prompt=(1,) * 30, num_tokens=99), "129 tokens is over max_sequence_length 128"),
        (Request(prompt=(1,) * 65, num_tokens=1), "65 tokens is over max_tokens 64"),
    ],
)
def test_requests_that_cannot_be_taken(request_: Request, message: str) -> None:
    engine = testing.build_engine(SPEC)
    engine.enable_chunked_prefill = False
    with pytest.raises(ValueError, match=message):
        testing.decode(engine, [request_])


def test_too_few_steps() -> None:
    engine = testing.build_engine(SPEC)
    with pytest.raises(RuntimeError, match=r"requests \[0, 1\] of 3 did not end within 6 steps"):
        testing.decode(engine, REQUESTS[:3:2] + REQUESTS[3:4], max_steps=6)


def test_never_resumed() -> None:
    engine = testing.build_engine(SPEC)
    if not hasattr(engine, "suspend"):
        pytest.skip("the release's engine cannot be suspended")
    testing.suspend(engine)
    with pytest.raises(RuntimeError, match="within 50 steps; the engine is suspended"):
        testing.decode(engine, REQUESTS, max_steps=50)
