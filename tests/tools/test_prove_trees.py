"""Proving on releases on disk, where there is no clone. The guide's test runs it for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_patch import ledger
from megatron_patch.edits import Requires, Substitute
from megatron_patch.model import HAS_IT, NEEDS_NONE
from tests.unit.sample import make_patch
from tests.unit.source_trees import MODULE, write
from tools import prove
from tools.history import ledger_file
from tools.history.ledger import Ledger
from tools.history.trees import Tree
from tools.proving import entries, trees
from tools.proving.answers import Answer, Journal
from tools.proving.runs import Outcome
from tools.proving.wanted import Question

TARGET = f"{MODULE}:get"
OLD = "def get(x):\n    return 1\n"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree("1.0", write(tmp_path / "tree", OLD).root)


def known(digest: str) -> object:
    """A record whose one variant is for source of this digest."""
    patch = make_patch(Substitute(TARGET, "return 1", "return 2"), known=lambda _: digest)
    return patch._replace(fixed_in="2.0", told_by=(TARGET,))


def digest_of(tree: Tree) -> str:
    ((_, digest),) = trees.ask(tree, [known("0" * 16)])[0].told  # type: ignore[list-item]
    return digest


def test_what_is_not_known_is_asked_and_nothing_else(tree):
    unknown = known("0" * 16)
    (question,) = trees.ask(tree, [unknown])
    digest = digest_of(tree)
    assert question == Question(
        unknown.id, (("the sample", ((TARGET, digest),)),), ((TARGET, digest),)
    )
    assert trees.ask(tree, [known(digest)]) == ()
    assert trees.ask(Tree("1.0", write(tree.root, "").root), [unknown]) == ()


def test_what_a_variant_relies_on_has_to_be_read_by_somebody(tree):
    edits = Substitute(TARGET, "return 1", "return 2"), Requires(TARGET, "what it relies on")
    patch = make_patch(*edits, known=lambda _: "0" * 16)._replace(told_by=(TARGET,))
    digest = digest_of(tree)
    for reviewed, fitting in (((), ()), ((digest,), (("the sample", ((TARGET, digest),)),))):
        (question,) = trees.ask(tree, [patch], reviewed)
        assert question.fitting == fitting


@pytest.mark.parametrize(
    ("version", "has_it"), [("1.9.9", False), ("2.0", True), ("2.0.1", True), ("10.0", True)]
)
def test_the_record_says_which_version_has_the_change(version, has_it):
    assert trees.has_change(known("0" * 16), version) is has_it  # type: ignore[arg-type]
    assert not trees.has_change(known("0" * 16)._replace(fixed_in=None), version)  # type: ignore[attr-defined]


class Bench:
    """In place of the real bench: the outcome of the proofs, by the selection."""

    def __init__(self, *outcomes: Outcome, works: bool = True) -> None:
        self.outcomes = list(outcomes)
        self.works = works
        self.root: Path | None = None

    def __call__(self, root: Path, python: str, seconds: float) -> Bench:
        self.root = root
        return self

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None: ...

    def know(self, entries: object) -> None: ...

    def run(self, patches: object, selection: str) -> dict[str, Outcome]:
        return dict.fromkeys(list(patches), self.outcomes.pop(0))  # type: ignore[call-overload]

    def builds_an_engine(self) -> bool:
        return self.works


@pytest.mark.parametrize(
    ("version", "outcomes", "proved"),
    [
        ("1.0", [Outcome.FAILS, Outcome.PASSES], "the sample"),
        ("1.0", [Outcome.FAILS, Outcome.FAILS], "unknown"),
        ("1.0", [Outcome.PASSES], NEEDS_NONE),
        ("1.0", [Outcome.LACKS], NEEDS_NONE),
        ("2.0", [Outcome.PASSES], HAS_IT),
    ],
)
def test_an_answer_is_of_the_version_of_its_tree(tree, monkeypatch, version, outcomes, proved):
    bench = Bench(*outcomes)
    monkeypatch.setattr(trees, "Bench", bench)
    patch = known("0" * 16)
    tree = tree._replace(version=version)
    (answer,) = trees.prove(tree, [patch], trees.ask(tree, [patch]))
    assert (answer.proved, answer.commit) == (proved, version)
    assert bench.root == tree.root
    assert bench.outcomes == []


def test_an_entry_of_a_tree_has_no_commit():
    patch = known("0" * 16)
    digests = ((TARGET, "1" * 16),)
    answer = Answer(
        Question(patch.id, (("the sample", digests),), digests),  # type: ignore[attr-defined]
        *("1.0", "the sample", digests, "fails", "passes"),
    )
    entry = {"proved": "the sample", "digests": dict(digests), "releases": "1.0", "commit": ""}
    assert entries.entries_of(patch, [answer], Ledger({}, {}), []) == [entry]  # type: ignore[arg-type]
    surveyed = {TARGET: {"1" * 16: {"releases": ["1.0", "1.1"]}}}
    assert entries.entries_of(patch, [answer], Ledger({}, surveyed), []) == [  # type: ignore[arg-type]
        {**entry, "releases": "1.0 and 1.1"}
    ]


@pytest.mark.parametrize("commit", ["", "a" * 40])
def test_what_stays_has_the_releases_of_a_newer_survey(commit):
    patch = known("0" * 16)
    kept = {"proved": "the sample", "digests": {TARGET: "1" * 16}, "releases": "1.0"}
    kept["commit"] = commit
    newer = Ledger({}, {TARGET: {"1" * 16: {"releases": ["1.0", "1.1"], "main": ["a" * 12]}}})
    assert entries.entries_of(patch, [], newer, [kept]) == [{**kept, "releases": "1.0 and 1.1"}]
    # Entries whose source the survey does not know stay as they were.
    assert entries.entries_of(patch, [], Ledger({}, {}), [kept]) == [kept]


@pytest.mark.parametrize(
    ("said", "commit", "proved"),
    [(HAS_IT, "", "the sample"), (HAS_IT, "b" * 40, HAS_IT), ("another", "", "another")],
)
def test_what_no_commit_is_said_of_gives_way_to_a_proof(said, commit, proved):
    patch = known("0" * 16)
    other = patch.variants[0]._replace(name="another", edits=())  # type: ignore[attr-defined]
    patch = patch._replace(variants=(*patch.variants, other))  # type: ignore[attr-defined]
    digests = ((TARGET, "1" * 16),)
    question = Question(patch.id, (("the sample", digests),), digests)
    answer = Answer(question, "a" * 40, "the sample", digests, "fails", "passes")
    kept = {"proved": said, "digests": dict(digests), "releases": "1.0", "commit": commit}
    surveyed = Ledger({}, {TARGET: {"1" * 16: {"main": ["a" * 12]}}})
    (entry,) = entries.entries_of(patch, [answer], surveyed, [kept])
    assert entry["proved"] == proved


def test_a_digest_that_no_release_has_is_that_of_the_tree():
    surveyed = Ledger({}, {TARGET: {"1" * 16: {"main": ["a" * 12]}}})
    assert entries.where({TARGET: "1" * 16}, "1.0", surveyed) == "1.0"
    assert entries.where({TARGET: "1" * 16}, "b" * 40, surveyed) == "main at bbbbbbbbbb"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "expected one of --megatron and --tree"),
        (["--megatron", "x", "--tree", "1.0={tree}"], "expected one of --megatron and --tree"),
        (["--tree", "{tree}"], "expected VERSION=DIR"),
        (["--tree", "one={tree}"], "Invalid version"),
        (["--tree", "1.0={tree}/none"], "is not a Megatron tree"),
    ],
)
def test_a_tree_that_is_none_is_told(tree, tmp_path, capsys, arguments, complaint):
    words = [word.format(tree=tree.root) for word in arguments]
    with pytest.raises(SystemExit) as ended:
        prove.main([*words, "--journal", str(tmp_path / "journal")])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "journal").exists()


def test_answers_go_to_the_journal_and_are_not_asked_again(tree, tmp_path, capsys, monkeypatch):
    patch = known("0" * 16)
    monkeypatch.setattr(prove, "knowing", lambda journal, keep: [patch])
    path = tmp_path / "journal"
    arguments = ["--tree", f"1.0={tree.root}", "--journal", str(path)]
    monkeypatch.setattr(trees, "Bench", Bench(Outcome.FAILS, Outcome.FAILS))
    assert prove.main([*arguments, "--plan"]) == 0
    assert capsys.readouterr().out == f"1.0: 1 questions {patch.id}\n"
    assert not path.exists()
    assert prove.main(arguments) == 0
    said = f"1.0: {patch.id}: unknown (unpatched it fails, patched it fails)\n"
    assert capsys.readouterr().out == f"1.0: 1 questions {patch.id}\n{said}"
    assert [answer.proved for answer in Journal(path).answers] == ["unknown"]
    assert json.loads(path.read_text())
    assert prove.main(arguments) == 0
    assert capsys.readouterr().out == "1.0: 0 questions\n"


def test_the_ledger_of_the_package_is_as_the_tool_writes_it():
    written = entries.as_text(entries.of_series([], keep=True))
    assert written == ledger.FILE.read_text(encoding="utf-8")


def test_each_entry_of_the_ledger_names_what_it_was_proved_on():
    """A commit, or releases, which are there to be proved again."""
    surveyed = ledger_file.load(entries.SOURCES)
    for patch, found in json.loads(ledger.FILE.read_text(encoding="utf-8"))["patches"].items():
        for entry in found:
            spans = [surveyed.targets[t][digest] for t, digest in entry["digests"].items()]
            shared = set.intersection(*(set(span.get("releases", ())) for span in spans))
            assert entry["commit"] or shared, f"{patch}: {entry}"


@pytest.mark.parametrize(
    ("name", "next_step"),
    [("sources.json", "write it with tools/survey.py"), ("proofs.json", "restore it with git")],
)
@pytest.mark.parametrize("text", [None, "{", "[]", '{"format": 1}'])
@pytest.mark.parametrize("mode", [["--write"], ["--plan", "--tree", "1.0={tree}"]])
def test_a_ledger_that_cannot_be_read_is_told(
    tree, tmp_path, capsys, monkeypatch, name, next_step, text, mode
):
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    if name == "sources.json":
        monkeypatch.setattr(entries, "SOURCES", file)
    else:
        monkeypatch.setattr(ledger, "FILE", file)
    words = [word.format(tree=tree.root) for word in mode]
    assert prove.main([*words, "--journal", str(tmp_path / "journal")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"prove: {file} ")
    assert next_step in line
    assert (file.read_text() if file.exists() else None) == text


@pytest.mark.parametrize(
    ("outcomes", "proved"),
    [
        # Unpatched, alone, beside the other, and the other without it.
        ([Outcome.FAILS, Outcome.FAILS, Outcome.PASSES, Outcome.FAILS], "the sample"),
        # The proof fails for the defect that the other patch mends.
        ([Outcome.FAILS, Outcome.FAILS, Outcome.PASSES, Outcome.PASSES, Outcome.PASSES], "none"),
        ([Outcome.FAILS, Outcome.FAILS, Outcome.FAILS, Outcome.FAILS], "unknown"),
    ],
)
def test_another_defect_of_the_source_is_patched_first(tree, monkeypatch, outcomes, proved):
    digest = digest_of(tree)
    other = known(digest)._replace(id="other")  # type: ignore[attr-defined]
    patches = [known("0" * 16), other]
    (question,) = trees.ask(tree, patches)  # type: ignore[arg-type]
    bench = Bench(*outcomes)
    monkeypatch.setattr(trees, "Bench", bench)
    (made,) = trees.prove(tree, patches, [question])  # type: ignore[arg-type]
    assert made.proved == (NEEDS_NONE if proved == "none" else proved)
    assert bench.outcomes == []
