"""Two ranks that run the same configurations."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from megatron_patch.testing.releases import release
from tools.differential import ranks
from tools.differential.configuration import Configuration, Happening, Plan
from tools.differential.drawing import Abilities

#: Each test starts two processes, which takes as long as the short matrix.
nightly = pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="only in the nightly profile"
)

PLANS = (
    Plan(stem=1, length=12, num_tokens=5),
    Plan(stem=2, length=9, num_tokens=3, arrival=4),
    Plan(stem=3, length=7, num_tokens=4, arrival=2),
)
CONFIGURATION = Configuration(
    requests=PLANS,
    happenings=(Happening(3, "evaluate"),),
    company="pickle",
    lessons=("train",),
    recompute=True,
)


@nightly
@pytest.mark.parametrize("kind", ranks.KINDS)
def test_ranks_together_show_no_difference(device, kind):
    if kind == "expert" and not Abilities.installed().experts:
        pytest.skip(f"{release()} runs experts with Transformer Engine only")
    configuration = ranks.suited(CONFIGURATION, kind)
    (result,) = ranks.judge_all([configuration], kind, "all", seconds=300)
    assert result.configuration == configuration
    assert not result.findings


def test_ranks_share_requests_or_experts():
    found = ranks.suited(CONFIGURATION, "expert")
    assert found.experts
    assert (found.company, found.lessons, found.recompute, found.happenings) == (
        None,
        (),
        False,
        (),
    )
    # What ends the engine of a release would have the other rank wait.
    assert not ranks.suited(replace(CONFIGURATION, latents=True), "expert").latents
    assert ranks.suited(replace(CONFIGURATION, latents=True), "tensor").latents
    shares = [ranks.share(found, "expert", rank).requests for rank in range(ranks.WORLD)]
    assert sorted(map(len, shares)) == [1, 2]
    assert ranks.share(found, "tensor", 1) == found


@nightly
def test_a_rank_that_fails_says_why(device):
    with pytest.raises(RuntimeError, match="no such patch"):
        ranks.judge_all([Configuration()], "tensor", "no such patch", seconds=300)
