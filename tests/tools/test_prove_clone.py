"""Which source of a clone is asked about, and whether the ledger is what its commits have."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_patch.backports import SERIES
from megatron_patch.edits import Substitute
from megatron_patch.model import HAS_IT, Patch
from tests.unit.sample import make_patch
from tools import prove
from tools.history.commits import Clone
from tools.proving import wanted
from tools.proving.answers import Journal

from .history_repository import FILE, GET, RESET, Upstream, digest, source


@pytest.fixture
def upstream(tmp_path: Path) -> Upstream:
    return Upstream(tmp_path / "upstream")


@pytest.fixture
def clone(upstream: Upstream) -> Iterator[Clone]:
    upstream.commit({FILE: source(1)})
    with Clone(upstream.root) as opened:
        yield opened


def unproved(told_by: str = GET) -> Patch:
    """A record without known source, for which the judge reads no source."""
    made = make_patch(Substitute(RESET, "return 1", "return 9"), known=lambda _: "0" * 16)
    return made._replace(sources=(), told_by=(told_by,))


def test_source_that_the_judge_has_not_looked_at_is_told_apart(upstream, clone):
    upstream.commit({FILE: source(1, get=4)})
    commits = clone.first_parent("main")
    questions = wanted.ask(clone, [unproved()], commits)
    assert {question.told: tuple(asked) for question, asked in questions.items()} == {
        ((GET, digest("get", 0)),): tuple(commits[:1]),
        ((GET, digest("get", 4)),): tuple(commits[1:]),
    }


@pytest.fixture
def ledger(clone, tmp_path, monkeypatch):
    """A function that writes a ledger of one entry, as if it was proved at the head of main."""

    def write(of_get: str, commit: str | None = None) -> str:
        (head,) = clone.first_parent("main")
        entry = {
            "proved": HAS_IT,
            "digests": {GET: of_get},
            "releases": "main",
            "commit": head.id if commit is None else commit,
        }
        file = tmp_path / "proofs.json"
        file.write_text(json.dumps({"format": 1, "patches": {"a-patch": [entry]}}))
        monkeypatch.setattr(prove.ledger, "FILE", file)
        return head.id

    return write


def check(clone: Clone) -> int:
    return prove.main(["--megatron", str(clone.path), "--check"])


def test_an_entry_is_what_its_commit_has(clone, ledger, capsys):
    ledger(digest("get", 0))
    assert check(clone) == 0
    assert "1 entries" in capsys.readouterr().out


@pytest.mark.parametrize("commit", [None, "f" * 40])
def test_an_entry_that_somebody_has_made_is_found(clone, ledger, capsys, commit):
    head = ledger(digest("get", 5), commit)
    assert check(clone) == 1
    complaint = capsys.readouterr().err
    assert "a-patch" in complaint
    assert (commit or head)[:10] in complaint
    assert (digest("get", 5) if commit is None else "no such commit") in complaint


@pytest.mark.parametrize(("named", "asked"), [(None, ["one", "two"]), (["two"], ["two"])])
def test_one_patch_can_be_asked_about_alone(clone, monkeypatch, tmp_path, named, asked):
    both = [unproved()._replace(id="one"), unproved()._replace(id="two")]
    monkeypatch.setattr(prove, "knowing", lambda journal, keep: both)
    monkeypatch.setattr(prove, "commits_of", lambda clone, *_: clone.first_parent("main"))
    options = argparse.Namespace(patch=named, anew=False, since="", read=[])
    plan = prove.planned(clone, Journal(tmp_path / "journal"), set(), options)
    assert sorted(question.patch for _, questions in plan for question in questions) == asked


def test_a_patch_that_the_series_lacks_is_an_error(clone, capsys):
    with pytest.raises(SystemExit):
        prove.main(["--megatron", str(clone.path), "--check", "--patch", "no-such-patch"])
    assert "invalid choice: 'no-such-patch'" in capsys.readouterr().err


def test_a_ledger_of_some_patches_alone_is_not_written(tmp_path, capsys):
    arguments = ["--journal", str(tmp_path / "journal"), "--write", "--anew", "--patch"]
    with pytest.raises(SystemExit):
        prove.main([*arguments, SERIES[0].id])
    assert "would leave the other patches out of the ledger" in capsys.readouterr().err
