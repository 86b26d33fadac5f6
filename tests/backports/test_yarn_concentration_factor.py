"""YaRN in dynamic inference, on whichever release is installed."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_patch.backports.upstream.yarn_concentration_factor import YARN_CONCENTRATION_FACTOR

from . import attending
from .checks import assert_state_of_record, proof

pytestmark = pytest.mark.usefixtures("device")

YARN: dict[str, Any] = {
    "position_embedding_type": "yarn",
    "yarn": {"rotary_scaling_factor": 32.0},
}

#: Their factors are 1.35, 2.04 and 0.74.
FACTORS: dict[str, dict[str, float]] = {
    "mscale of 1": {"mscale": 1.0, "mscale_all_dim": 0.0},
    "mscale of 3": {"mscale": 3.0, "mscale_all_dim": 0.0},
    "mscale of all dimensions": {"mscale": 0.0, "mscale_all_dim": 1.0},
}


def test_state(device):
    attending.attention()
    assert_state_of_record(YARN_CONCENTRATION_FACTOR)


@proof
@pytest.mark.parametrize("factor", FACTORS)
def test_the_factor_is_that_of_the_model(factor):
    attending.check({**YARN, "yarn": {"rotary_scaling_factor": 32.0, **FACTORS[factor]}})


@proof
@pytest.mark.parametrize("engine", attending.ENGINES)
def test_in_all_kinds_of_steps(engine):
    attending.check(YARN, engine)


@pytest.mark.parametrize("position_embedding_type", ["rope", "learned_absolute", "yarn"])
def test_without_a_factor_queries_and_keys_are_as_before(
    unpatched, monkeypatch, position_embedding_type
):
    fields: dict[str, Any] = {"position_embedding_type": position_embedding_type}
    if position_embedding_type == "yarn":
        fields["yarn"] = {"rotary_scaling_factor": 1.0}
    attending.assert_called_as_before(monkeypatch, YARN_CONCENTRATION_FACTOR, **fields)
