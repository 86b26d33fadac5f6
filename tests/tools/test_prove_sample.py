"""Proving a sample of the ledger again: an entry that is not what the proofs say is found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from megatron_patch import ledger
from megatron_patch.backports import SERIES
from megatron_patch.edits import Replace, Substitute
from megatron_patch.model import HAS_IT, NEEDS_NONE
from megatron_patch.source_tree import SourceTree
from megatron_patch.testing.version import core_version
from tests.unit.sample import digest_in, make_patch
from tests.unit.source_trees import MODULE, write
from tools import pins, prove
from tools.history import ledger_file
from tools.history.ledger import Ledger
from tools.history.trees import Tree
from tools.proving import sampling
from tools.proving.runs import Outcome

from .test_prove_trees import Bench

TARGET = f"{MODULE}:get"
OLD, NEW = "def get(x):\n    return 1\n", "def get(x):\n    return 2\n"
FAILS, PASSES, LACKS = Outcome.FAILS, Outcome.PASSES, Outcome.LACKS


def digest_of(text: str) -> str:
    return digest_in(text)(TARGET)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree("1.0", write(tmp_path / "tree", OLD).root)


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that replaces the package's ledger by one with other entries of one patch."""

    def plant(patch: str, *entries: dict[str, Any]) -> None:
        content = json.loads(ledger.FILE.read_text(encoding="utf-8"))
        content["patches"][patch] = entries
        file = tmp_path / "proofs.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        monkeypatch.setattr(ledger, "FILE", file)
        ledger._read.cache_clear()

    yield plant
    ledger._read.cache_clear()


def entry(proved: str, digest: str, **changes: object) -> dict[str, Any]:
    return {
        "proved": proved,
        "digests": {TARGET: digest},
        "releases": "1.0",
        "commit": "",
        **changes,
    }


def sample(edit: object = None) -> Any:
    """A record whose sources are those of the ledger."""
    edit = edit or Substitute(TARGET, "return 1", "return 2")
    return make_patch(edit, known=lambda _: "")._replace(sources=None, told_by=(TARGET,))


@pytest.mark.parametrize(
    ("proved", "outcomes", "is_right"),
    [
        ("the sample", [FAILS, PASSES], True),
        ("the sample", [FAILS, FAILS], False),
        ("the sample", [PASSES], False),
        ("the sample", [LACKS], False),
        (HAS_IT, [PASSES], True),
        (NEEDS_NONE, [PASSES], True),
        (NEEDS_NONE, [LACKS], True),
        (HAS_IT, [FAILS, PASSES], False),
        (NEEDS_NONE, [FAILS, FAILS], False),
    ],
)
def test_an_entry_is_what_the_proofs_say(tree, plant, monkeypatch, proved, outcomes, is_right):
    plant("sample", entry(proved, digest_of(OLD)), entry("the sample", digest_of(NEW)))
    bench = Bench(*outcomes)
    monkeypatch.setattr(sampling, "Bench", bench)
    (checked,) = sampling.check(tree, [sample()])
    assert checked.is_right is is_right
    assert checked.entry.source.proved == proved
    assert bench.outcomes == []
    if not is_right:
        assert f"sample: the ledger says {proved!r} of 1.0; the proofs say" in str(checked)


def test_each_of_several_entries_that_match_is_proved(tree, plant, monkeypatch):
    """Two variants have the same edits, but a proof of one says nothing of the other."""
    patch = sample()
    other = patch.variants[0]._replace(name="other")
    patch = patch._replace(variants=(*patch.variants, other))
    known = digest_of(OLD)
    plant("sample", entry("the sample", known), entry("other", known))
    bench = Bench(FAILS, PASSES, FAILS, FAILS, PASSES)
    monkeypatch.setattr(sampling, "Bench", bench)
    found = sampling.check(tree, [patch])
    said = [(checked.entry.source.proved, checked.answer.proved) for checked in found]
    assert said == [("the sample", "the sample"), ("other", "the sample")]
    assert [checked.is_right for checked in found] == [True, False]
    assert bench.outcomes == []


def test_what_a_person_has_read_stays_read_where_the_entry_itself_is_in_question(
    tree, plant, monkeypatch
):
    """No proof shows what a replacement as a whole is for: its source has to be in the ledger."""

    def get(x):  # type: ignore[no-untyped-def]
        return 2

    plant("sample", entry("the sample", digest_of(OLD)))
    monkeypatch.setattr(sampling, "Bench", Bench(FAILS, PASSES))
    (checked,) = sampling.check(tree, [sample(Replace(TARGET, get))])
    assert checked.is_right


def test_a_tree_that_does_not_run_says_nothing_of_the_ledger(tree, plant, monkeypatch):
    plant("sample", entry(HAS_IT, digest_of(OLD)))
    monkeypatch.setattr(sampling, "Bench", Bench(FAILS, FAILS, works=False))
    with pytest.raises(sampling.CannotRunError, match=r"1\.0"):
        sampling.check(tree, [sample()])


def test_source_that_no_survey_has_seen_is_found(plant):
    known = digest_of(OLD)
    surveyed = Ledger({}, {TARGET: {known: {"releases": ["1.0"]}}})
    plant("sample", entry("the sample", known), entry(HAS_IT, "0" * 16))
    (said,) = sampling.unsurveyed([sample()], surveyed)
    assert said == (
        "sample: the ledger says 'has it' of 1.0, with source that no survey has seen: "
        f"{TARGET} {'0' * 16}"
    )
    plant("sample", entry("the sample", known, commit="a" * 40, releases="0.9"))
    (said,) = sampling.unsurveyed([sample()], surveyed)
    assert (
        said == "sample: the ledger says 'the sample' of 0.9; by the survey that source is of 1.0"
    )
    plant("sample", entry("the sample", known, commit="a" * 40))
    assert list(sampling.unsurveyed([sample()], surveyed)) == []


def test_the_package_has_no_entry_that_no_survey_knows():
    surveyed = ledger_file.load(sampling.SOURCES)
    assert list(sampling.unsurveyed(SERIES, surveyed)) == []


BUILDS = ["0.16.0", "0.15.1", "0.15.2", *(f"0.17.0rc0.dev{n}" for n in range(200)), "0.17.0"]


def test_a_sample_has_different_releases_and_is_the_same_for_a_seed():
    drawn = [sampling.draw(BUILDS, 4, seed) for seed in range(40)]
    for builds in drawn:
        bases = [Version(build).base_version for build in builds]
        assert sorted(bases) == ["0.15.1", "0.15.2", "0.16.0", "0.17.0"]
    assert sampling.draw(BUILDS[::-1], 4, 7) == drawn[7]
    assert len({tuple(builds) for builds in drawn}) > 30
    assert sorted(sampling.draw(BUILDS, 999, 0)) == sorted(BUILDS)


def test_the_pins_and_what_is_older_are_not_drawn(monkeypatch):
    monkeypatch.setattr(
        pins, "builds", lambda: ["0.13.1", "0.14.0rc7", "0.14.0", "0.16.0rc0.dev7", "0.19.2", "1.0"]
    )
    assert sampling.candidates() == ["0.14.0rc7", "0.16.0rc0.dev7", "1.0"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "expected --journal FILE, --check or --sample"),
        (["--sample", "1", "--journal", "x"], "writes nothing"),
        (["--sample", "1", "--megatron", "x"], "is for builds, or for --tree"),
    ],
)
def test_what_does_not_go_together(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as ended:
        prove.main(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_command_tells_the_seed_and_what_is_wrong(tree, plant, monkeypatch, capsys):
    plant("sample", entry(HAS_IT, digest_of(OLD)))
    monkeypatch.setattr(prove, "SERIES", (sample(),))
    monkeypatch.setattr(ledger_file, "load", lambda _: Ledger({}, {TARGET: {digest_of(OLD): {}}}))
    arguments = ["--sample", "3", "--seed", "7", "--tree", f"1.0={tree.root}"]
    monkeypatch.setattr(sampling, "Bench", Bench(PASSES))
    assert prove.main(arguments) == 0
    seed, proved = capsys.readouterr().out.splitlines()
    assert (seed, proved.split(",")[0]) == ("seed 7", "1.0: 1 entries proved again")
    monkeypatch.setattr(sampling, "Bench", Bench(FAILS, PASSES))
    assert prove.main(arguments) == 1
    said = capsys.readouterr().out
    assert "1.0: sample: the ledger says 'has it' of 1.0; the proofs say 'the sample'" in said
    monkeypatch.setattr(sampling, "Bench", Bench(FAILS, FAILS, works=False))
    assert prove.main(arguments) == 2
    told = capsys.readouterr()
    assert "1.0: does not run here" in told.out
    assert "only 0 of 3 builds run here" in told.err


@pytest.mark.skipif(core_version() != "0.16.1", reason="the same on each release")
@pytest.mark.parametrize("planted", [False, True])
def test_an_entry_by_hand_is_found_on_the_release(plant, planted):
    """Runs the proofs of a backport on the installed Megatron."""
    (patch,) = (patch for patch in SERIES if patch.id == "input-position-view-cache")
    tree = Tree(core_version(), SourceTree.installed().root)
    before, *_ = sampling.matching([patch], SourceTree.at(tree.root).read)
    assert before.source.proved in {variant.name for variant in patch.variants}
    source = {**before.source._asdict(), "digests": dict(before.source.digests)}
    plant(patch.id, {**source, "proved": HAS_IT} if planted else source)
    (checked,) = sampling.check(tree, [patch])
    assert checked.is_right is not planted
    assert checked.answer.unpatched == "fails"
    # Without an entry of the variant nobody has read what it replaces: it is not tried.
    assert checked.answer.proved == ("unknown" if planted else before.source.proved)


def test_of_many_entries_some_are_drawn(tree, plant, monkeypatch):
    patch = sample()
    names = [f"other{n}" for n in range(4)]
    others = (patch.variants[0]._replace(name=name) for name in names)
    patch = patch._replace(variants=(*patch.variants, *others))
    known = digest_of(OLD)
    plant("sample", *(entry(name, known) for name in ("the sample", *names)))
    monkeypatch.setattr(sampling, "Bench", Bench(*[FAILS, PASSES] * 2))
    drawn = sampling.check(tree, [patch], most=2, seed=7)
    assert len({checked.entry for checked in drawn}) == 2
