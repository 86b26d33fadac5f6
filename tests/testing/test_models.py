from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_patch import testing
from megatron_patch.testing.releases import set_inference_mode

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
