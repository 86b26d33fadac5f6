from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_patch import testing
from megatron_patch.testing.releases import set_inference_mode

from ..conftest import RELEASE

pytestmark = pytest.mark.usefixtures("device")


def logits(model: Any, device: Any, length: int = 5) -> torch.Tensor:
    positions = torch.arange(length, device=device)[None]
    hidden = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    set_inference_mode(False)  # an engine of another test may have switched it on
    with torch.inference_mode():
        output: torch.Tensor = model(positions + 7, positions, hidden[None, None])
    return output


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_returns_logits(device: Any, dtype: str) -> None:
    model = testing.build_model(testing.EngineSpec(dtype=dtype))

    output = logits(model, device)

    assert output.shape == (1, 5, 128)
    assert output.dtype == getattr(torch, dtype)
    assert output.device.type == device.type
    assert output.isfinite().all()
    assert not model.training


def test_the_seed_decides_the_weights(device: Any) -> None:
    spec = testing.EngineSpec()
    state = torch.get_rng_state()

    first = logits(testing.build_model(spec), device)
    torch.manual_seed(1)
    again = logits(testing.build_model(spec), device)
    other = logits(testing.build_model(replace(spec, seed=1)), device)

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.set_rng_state(state)
    testing.build_model(spec)
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_dtype() -> None:
    with pytest.raises(testing.UnsupportedError, match="dtype must be one of float32, bfloat16"):
        testing.build_model(testing.EngineSpec(dtype="int8"))


ATTENTION: dict[str, dict[str, Any]] = {
    "window": {"window_size": (2, 0)},
    "window of each second layer": {"window_size": (2, 0), "window_attn_skip_freq": 2},
    "window of the second layer": {"window_size": (2, 0), "window_attn_skip_freq": (0, 1)},
    "yarn": {"position_embedding_type": "yarn"},
    "stronger yarn": {
        "position_embedding_type": "yarn",
        "yarn": {"rotary_scaling_factor": 32.0},
    },
    "sink of 0": {"softmax_type": "off-by-one"},
    "sink of each head": {"softmax_type": "learnable"},
    "scale": {"softmax_scale": 0.1},
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_as_the_spec_says_or_the_error_says_that_there_is_no_such_thing(
    device: Any, name: str
) -> None:
    spec = testing.EngineSpec(**ATTENTION[name])
    if RELEASE.release[:2] == (0, 14) and name not in ("window", "scale"):
        with pytest.raises(testing.UnsupportedError, match=r"Megatron-Core 0\.14.* has no"):
            testing.build_model(spec)
        return
    output = logits(testing.build_model(spec), device)
    assert output.isfinite().all()
    others = [{}, *(fields for other, fields in ATTENTION.items() if other != name)]
    if RELEASE.release[:2] == (0, 14):
        others = [{}]
    for fields in others:
        other = logits(testing.build_model(testing.EngineSpec(**fields)), device)
        assert not other.equal(output), f"the same model as that of {fields}"


def test_a_window_hides_what_is_further_away(device: Any) -> None:
    def after(first: int, **fields: Any) -> torch.Tensor:
        """The logits behind 3 tokens, of which one layer sees the last 2."""
        model = testing.build_model(testing.EngineSpec(num_layers=1, **fields))
        tokens = torch.tensor([[first, 5, 6]], device=device)
        hidden = torch.ones(3, 3, dtype=torch.bool, device=device).triu(1)
        set_inference_mode(False)
        with torch.inference_mode():
            output: torch.Tensor = model(
                tokens, torch.arange(3, device=device)[None], hidden[None, None]
            )
        return output[0, -1]

    assert not after(3).equal(after(4))
    assert not after(3, window_size=(2, 0)).equal(after(4, window_size=(2, 0)))
    assert after(3, window_size=(1, 0)).equal(after(4, window_size=(1, 0)))


def test_a_sink_takes_a_share_of_what_attention_gives(device: Any) -> None:
    if RELEASE.release[:2] == (0, 14):
        with pytest.raises(testing.UnsupportedError, match="has no softmax_type"):
            testing.build_model(testing.EngineSpec(softmax_type="learnable"))
        return
    first = testing.build_model(testing.EngineSpec(softmax_type="learnable"))
    again = testing.build_model(testing.EngineSpec(softmax_type="learnable"))
    sinks = [p for name, p in first.named_parameters() if name.endswith("softmax_offset")]
    assert [tuple(sink.shape) for sink in sinks] == [(4,), (4,)]
    assert all(sink.std() > 0.1 for sink in sinks)
    assert logits(first, device).equal(logits(again, device))


def test_unknown_attention() -> None:
    with pytest.raises(ValueError, match="softmax_type must be one of"):
        testing.build_model(testing.EngineSpec(softmax_type="other"))
    with pytest.raises(ValueError, match="yarn needs position_embedding_type"):
        testing.build_model(testing.EngineSpec(yarn={"mscale": 2.0}))


def test_model_options_go_to_the_configuration(device: Any) -> None:
    options = {"normalization": "RMSNorm", "qk_layernorm": True, "add_bias_linear": False}
    model = testing.build_model(testing.EngineSpec(model_options=options))
    names = [name for name, _ in model.named_parameters()]
    assert not any(name.endswith("layernorm.bias") for name in names)
    assert not any(name.endswith("linear_fc1.bias") for name in names)
    assert any(name.endswith("q_layernorm.weight") for name in names)
    assert logits(model, device).isfinite().all()
    with pytest.raises(testing.UnsupportedError, match="has no model option 'no_such_thing'"):
        testing.build_model(testing.EngineSpec(model_options={"no_such_thing": 1}))
