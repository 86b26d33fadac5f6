"""Processes that import the patches before Megatron."""

from __future__ import annotations

import pytest

from tools.differential import fresh
from tools.differential.configuration import Configuration, Happening, Plan

from .test_ranks import nightly

CONFIGURATION = Configuration(
    requests=(Plan(stem=1, length=12, num_tokens=5), Plan(stem=2, length=9, arrival=2)),
    happenings=(Happening(3, "train"), Happening(4, "evaluate")),
)


@nightly
def test_patches_that_were_there_first_change_nothing():
    assert not fresh.compare([CONFIGURATION, Configuration()], seconds=300)


@nightly
def test_a_difference_is_found(monkeypatch):
    """Two different configurations stand for one that the patches change."""
    original = fresh._run

    def run(configurations, selection, seconds):
        other = [Configuration(requests=(Plan(stem=4),))]
        return original(other if selection == "performance" else configurations, selection, seconds)

    monkeypatch.setattr(fresh, "_run", run)
    (result,) = fresh.compare([Configuration()], seconds=300)
    assert result.between == ("none", "performance")
    assert "requests[0].parts[0].prompt_tokens[0]" in [item.path for item in result.differences]


def test_what_a_process_says_is_in_the_error():
    with pytest.raises(RuntimeError, match="no such patch"):
        fresh._run([Configuration()], "no such patch", seconds=300)
