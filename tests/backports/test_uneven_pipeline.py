"""Pipelines whose stages differ in their number of layers, on whichever release is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_patch import testing
from megatron_patch.backports.upstream.uneven_pipeline import UNEVEN_PIPELINE
from megatron_patch.testing.models import transformer_config
from megatron_patch.testing.releases import (
    context_class,
    inference_arguments,
    inference_config_class,
)

from .. import two_ranks
from .checks import REQUESTS, assert_state_of_record, needs, proof

pytestmark = pytest.mark.usefixtures("device")

SPEC = testing.EngineSpec(num_layers=6, position_embedding_type="rope")


class OneStage:
    """What a context asks of a model."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.position_embedding_type = SPEC.position_embedding_type
        self.max_sequence_length = SPEC.max_sequence_length


def context_of_first_stage(stages: int = 2, **layers: Any) -> Any:
    """The context of the first stage, which is the one that a process alone has."""
    config = transformer_config(SPEC)
    config.pipeline_model_parallel_size = stages
    for name, value in layers.items():
        setattr(config, name, value)
    config_class = inference_config_class()
    if config_class is not None:
        return context_class()(config, config_class(**inference_arguments(SPEC)))
    needs(hasattr(context_class(), "from_config"), "a context that divides the layers itself")
    from megatron.core.inference.model_inference_wrappers.inference_wrapper_config import (
        InferenceWrapperConfig,
    )

    wrapper = InferenceWrapperConfig(
        hidden_size=SPEC.hidden_size,
        params_dtype=torch.float32,
        inference_batch_times_seqlen_threshold=-1,
        padded_vocab_size=SPEC.vocab_size,
        inference_max_requests=SPEC.max_requests,
        inference_max_seq_length=SPEC.max_sequence_length,
    )
    config.num_query_groups = config.num_attention_heads
    context = context_class().from_config(
        wrapper, OneStage(config), SPEC.max_requests, buffer_size_gb=0.01
    )
    # A context without it has a cache for every layer on each stage, which fits any pipeline.
    needs(hasattr(context, "layer_map"), "a context that divides the layers itself")
    return context


def layers_of(context: Any) -> int:
    """How many layers the context has a cache for."""
    assert sorted(context.layer_map) == sorted(context.layer_map.values())
    caches = context.memory_buffer.shape[1 if context.memory_buffer.dim() == 6 else 0]
    assert caches == len(context.layer_map)
    return len(context.layer_map)


def test_state():
    context_class()
    assert_state_of_record(UNEVEN_PIPELINE)


@proof
@pytest.mark.parametrize("layers", [2, 4])
def test_the_first_stage_has_its_own_number_of_layers(layers):
    assert layers_of(context_of_first_stage(num_layers_in_first_pipeline_stage=layers)) == layers


@proof
def test_the_last_stage_has_its_own_number_of_layers():
    assert layers_of(context_of_first_stage(num_layers_in_last_pipeline_stage=1)) == 5


@proof
def test_the_loss_counts_as_a_layer():
    """The loss is on the last stage, which has two layers of five then."""
    context = context_of_first_stage(num_layers=5, account_for_loss_in_pipeline_split=True)
    assert layers_of(context) == 3


@pytest.mark.parametrize(("stages", "layers"), [(1, 6), (2, 3), (3, 2)])
def test_an_even_pipeline_is_as_before(stages, layers):
    assert layers_of(context_of_first_stage(stages)) == layers


RANK = """
import faulthandler, json, os, sys

# Stages that do not meet wait for ever: say where, before the test gives up.
faulthandler.dump_traceback_later(240, exit=True)

import torch
from torch import distributed
import megatron_patch
from megatron_patch import testing

folder, fields, requests = json.loads(sys.argv[1])
rank = int(os.environ["RANK"])
distributed.init_process_group("gloo")
testing.start(pipeline_model_parallel_size=2)
engine = testing.build_engine(testing.EngineSpec(**fields))
decoded = testing.decode(
    engine, [testing.Request(*request) for request in requests], capture_logits=False
)
model = engine.controller.inference_wrapped_model.model
weights = {n: v for n, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
torch.save([decoded.tokens, len(model.decoder.layers), weights], os.path.join(folder, str(rank)))
testing.stop()
distributed.destroy_process_group()
"""


def run_stages(folder: Path, fields: dict[str, Any]) -> list[Any]:
    """The tokens that each of two stages returns, its number of layers, and its weights."""
    two_ranks.run(folder, RANK, [str(folder), fields, two_ranks.as_arguments(REQUESTS)])
    return [torch.load(folder / str(rank)) for rank in range(2)]


def whole(stages: list[Any], fields: dict[str, Any]) -> Any:
    """The model with the weights of both stages, each of which draws its own."""
    model = testing.build_model(testing.EngineSpec(**fields))
    weights: dict[str, Any] = {}
    for offset, (_, _, part) in zip((0, stages[0][1]), stages, strict=True):
        for name, value in part.items():
            start, layers, rest = name.partition("layers.")
            number, dot, rest = rest.partition(".")
            shifted = f"{start}{layers}{int(number) + offset}{dot}{rest}" if layers else name
            weights[shifted] = value
    names = {name for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    assert weights.keys() == names
    model.load_state_dict(weights, strict=False)
    return model


def test_two_stages_return_what_one_model_returns(tmp_path):
    needs(inference_config_class(), "a context that divides the layers itself, of the engine")
    fields: dict[str, Any] = {"num_layers": 6, "position_embedding_type": "rope"}
    stages = run_stages(tmp_path, {**fields, "num_layers_in_first_pipeline_stage": 2})
    assert [found for _, found, _ in stages] == [2, 4]
    alone = testing.reference_decode(whole(stages, fields), REQUESTS)
    for tokens, _, _ in stages:
        assert [tuple(found) for found in tokens] == [tuple(expected) for expected in alone]
