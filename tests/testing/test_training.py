from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_patch import testing
from megatron_patch.testing import graph_counts
from megatron_patch.testing.training import loss_of, overwritten_inputs

pytestmark = pytest.mark.usefixtures("device")

SPEC = testing.EngineSpec()
GRAPHS = replace(SPEC, cuda_graph_scope="layer")

# Parameters whose gradients depend on the input of the first operator of the first layer.
BEFORE_THE_LAYERS = {
    "embedding.word_embeddings.weight",
    "embedding.position_embeddings.weight",
    "decoder.layers.0.input_layernorm.weight",
}


def batch(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    tokens: list[list[int]] = torch.randint(
        SPEC.vocab_size, (2, 9), generator=generator, device="cpu"
    ).tolist()
    return tokens


def different(one: testing.Trained, other: testing.Trained) -> set[str]:
    assert one.gradients.keys() == other.gradients.keys()
    return {
        name
        for name, gradient in one.gradients.items()
        if not torch.equal(gradient, other.gradients[name])
    }


def test_losses_and_gradients_are_those_of_the_model_alone() -> None:
    model = testing.build_model(SPEC, training=True)
    assert model.training

    trained = testing.train_step(model, [batch(0), batch(1)])

    alone = testing.build_model(SPEC)
    losses = [loss_of(alone, batch(seed)) for seed in (0, 1)]
    sum(losses).backward()
    assert [loss.item() for loss in trained.losses] == [loss.item() for loss in losses]
    for name, parameter in alone.named_parameters():
        assert torch.allclose(trained.gradients[name], parameter.grad, atol=1e-6)
        assert trained.gradients[name].any()


def test_each_step_starts_from_no_gradient_and_keeps_the_weights() -> None:
    model = testing.build_model(SPEC, training=True)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}

    first, second = (testing.train_step(model, [batch(0)]) for _ in range(2))

    assert not different(first, second)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert torch.equal(parameter.grad, second.gradients[name])


def test_logits_do_not_depend_on_the_mode(device: Any) -> None:
    model = testing.build_model(SPEC, training=True)

    logits = testing.forward(model, batch(0))

    assert logits.requires_grad
    assert logits.shape == (2, 9, SPEC.vocab_size)
    with torch.no_grad():
        assert torch.equal(logits, testing.forward(model.eval(), batch(0)))


@pytest.mark.parametrize("position_embedding_type", ["learned_absolute", "rope"])
def test_graphs_give_the_losses_and_gradients_of_a_model_without(
    position_embedding_type: str,
) -> None:
    fields = {"position_embedding_type": position_embedding_type}
    plain = testing.build_model(replace(SPEC, **fields), training=True)
    graphed = testing.build_model(replace(GRAPHS, **fields), training=True)
    optimisers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (plain, graphed)]

    with graph_counts.counted() as count:
        for step in range(4):
            batches = [batch(seed) for seed in range(step, step + 1 + step % 2)]
            expected, got = (testing.train_step(model, batches) for model in (plain, graphed))

            assert got.losses == expected.losses
            lost = BEFORE_THE_LAYERS if step and 0 in overwritten_inputs(graphed) else set()
            assert different(expected, got) == lost & got.gradients.keys()
            for optimiser in optimisers:
                optimiser.step()
            graphed.load_state_dict(plain.state_dict())  # where gradients are wrong

    # Forward and backward of each layer; one, then two microbatches; the first step has no graphs.
    assert count.captures == 2 * SPEC.num_layers
    assert count.replays == count.captures * (2 + 1 + 2)


def test_microbatches_in_flight_have_graphs_of_their_own() -> None:
    plain = testing.build_model(SPEC, training=True)
    graphed = testing.build_model(GRAPHS, training=True)
    one_at_a_time = testing.train_step(plain, [batch(seed) for seed in range(4)])

    for step in range(3):
        with graph_counts.counted() as count:
            got = testing.train_step(graphed, [batch(seed) for seed in range(4)], in_flight=2)

        assert got.losses == one_at_a_time.losses
        lost = BEFORE_THE_LAYERS if step and overwritten_inputs(graphed) else set()
        assert different(one_at_a_time, got) <= lost
        assert count.captures == (0 if step else 2 * 2 * SPEC.num_layers)
        assert count.replays == (2 * 4 * SPEC.num_layers if step else 0)


def test_only_the_first_layer_loses_its_input() -> None:
    from megatron.core import package_info

    model = testing.build_model(GRAPHS, training=True)
    testing.train_step(model, [batch(0)])

    affected = package_info.__version__.startswith(("0.16.", "0.17."))
    assert overwritten_inputs(model) == ([0] if affected else [])


def test_an_engine_decodes_between_the_steps_of_another_model() -> None:
    request = testing.Request(prompt=(1, 2, 3), num_tokens=6)
    plain = testing.build_model(SPEC, training=True)
    engine = testing.build_engine(replace(GRAPHS, num_cuda_graphs=1))
    graphed = testing.build_model(GRAPHS, training=True)
    expected = testing.reference_decode(testing.build_model(SPEC), [request])

    for step in range(3):
        assert testing.decode(engine, [request]).tokens == expected
        with graph_counts.counted() as count:
            got = testing.train_step(graphed, [batch(step)])
        assert got.losses == testing.train_step(plain, [batch(step)]).losses
    assert count.replays == 2 * SPEC.num_layers
