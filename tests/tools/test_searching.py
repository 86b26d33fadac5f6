"""The search of the matrix shrinks what it finds, whatever the release is."""

from __future__ import annotations

import pytest

from megatron_patch.testing.releases import engine_class
from tools.differential import judging, oracles, searching
from tools.differential.configuration import decode, encode
from tools.differential.drawing import Abilities

from ..matrix.conftest import Planted
from ..matrix.test_judging import another_token

pytestmark = pytest.mark.usefixtures("unpatched")


@pytest.fixture
def hurried(mocker):
    """Limit the time of shrinking, in which each try is a run of the engine."""
    mocker.patch.object(searching, "SHRINKING", 3.0)


def search_for(run_with):  # type: ignore[no-untyped-def]
    """A search for what performance patches change."""
    wanted = lambda finding: finding.kind == "performance"  # noqa: E731
    return searching.Search(Abilities.installed(), run_with, [], wanted=wanted)


def test_a_search_shrinks_what_it_finds_and_tells_how_to_repeat_it(hurried):
    change = another_token(engine_class())
    run_with = Planted(performance=[change]).runner()
    search = search_for(run_with)
    search.run(0, examples=10, most=1)
    (found,) = search.found
    assert found.finding.kind == "performance"
    assert found.examples <= 10
    command = found.command.split("--repeat ")[1].strip("'")
    assert decode(command) == found.configuration


def test_a_search_shrinks_what_shows_something(mocker):
    """The judge takes no time, so that the limit leaves enough for shrinking."""
    shown = []
    finding = judging.Finding("performance", ("none", "performance"))

    def judge(configuration, run_with):
        enough = any(plan.num_tokens > 2 for plan in configuration.requests)
        if enough:
            shown.append(encode(configuration))
        return judging.Judgement([finding] if enough else [])

    mocker.patch.object(judging, "judge", judge)
    mocker.patch.object(judging, "attribute", return_value=[])
    search = search_for(None)
    search.run(0, examples=50, most=1)
    (found,) = search.found
    text = encode(found.configuration)
    assert len(text) == min(map(len, shown))
    assert len(text) < len(shown[0]) / 2


def test_a_search_leaves_alone_what_it_has_found(mocker):
    """With a judge that takes no time, for which many configurations show each of two things."""
    wrong = [oracles.Complaint("tokens", 0, name, {"list": name}) for name in ("one", "another")]
    findings = [judging.Finding("harm", ("none", "all"), complaints=(this,)) for this in wrong]

    def judge(configuration, run_with):
        return judging.Judgement([] if len(configuration.requests) < 2 else list(findings))

    mocker.patch.object(judging, "judge", judge)
    mocker.patch.object(judging, "attribute", return_value=[])
    search = searching.Search(Abilities.installed(), None, [])
    search.run(0, examples=200, most=3)
    assert [found.finding.signature for found in search.found] == [f.signature for f in findings]
    assert [len(found.configuration.requests) for found in search.found] == [2, 2]
    assert search.examples == 200
