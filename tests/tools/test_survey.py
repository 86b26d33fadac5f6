"""The survey of a history that the test makes: what the ledger says, and what ends it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megatron_patch.backports import SERIES
from megatron_patch.edits import Add, Replace
from megatron_patch.judge import judge
from megatron_patch.ledger import FORMAT
from megatron_patch.model import Patch
from megatron_patch.sources import read_source
from megatron_patch.verdicts import Verdict, find_definition
from tests.tools.history_repository import (
    FILE,
    GET,
    PACKAGE_FILE,
    RESET,
    Upstream,
    digest,
    method,
    source,
)
from tests.unit.sample import make_patch
from tools import survey
from tools.history import ledger_file
from tools.history.commits import Clone, Commit
from tools.history.digests import History, targets_of
from tools.history.git import CloneError

#: What erases the line of progress.
ERASED = "\r\x1b[K"


def reset(self):  # type: ignore[no-untyped-def]
    return 9


PATCH = make_patch(
    Add("megatron.core.context:Context._helper", reset),
    Replace(RESET, reset),
    known=lambda _: digest("reset", 1),
    has_it={GET: digest("get", 5)},
)


@dataclass
class Made:
    """An upstream with all that a survey has to tell apart, and its commits by what they do."""

    upstream: Upstream
    ids: dict[str, str]

    def short(self, *names: str) -> list[str]:
        return [self.ids[name][:12] for name in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    upstream = Upstream(tmp_path_factory.mktemp("survey") / "upstream")
    ids = {}
    ids["root"] = upstream.commit({FILE: source(1)})
    upstream.git("tag", "core_v0.1.0rc0")
    ids["other"] = upstream.commit({"README.md": "nothing of ours", "docs/a.py": "x = 1"})
    ids["second"] = upstream.commit({FILE: source(2) + "# a comment\n"})
    upstream.git("tag", "core_v0.1.0")
    upstream.switch("core_r0.1.0", "HEAD")
    ids["release"] = upstream.commit({FILE: source(3)})
    upstream.git("tag", "--annotate", "--message", "0.1.1", "core_v0.1.1")
    upstream.switch("dev", ids["second"])
    ids["dev"] = upstream.commit({"README.md": "dev"})
    upstream.switch("side", ids["second"])
    ids["side"] = upstream.commit({FILE: source(2, get=4)})
    upstream.switch("main")
    ids["main"] = upstream.commit({"README.md": "main"})
    ids["merge"] = upstream.merge("side")
    ids["broken"] = upstream.commit({FILE: source(2, get=4) + "def ("})
    ids["back"] = upstream.commit({FILE: source(1, get=4)})
    ids["moved"] = upstream.commit({FILE: None, PACKAGE_FILE: source(1, get=None)})
    return Made(upstream, ids)


@pytest.fixture(autouse=True)
def series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SERIES", (PATCH,))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output" / "sources.json"


@pytest.fixture(params=["as made", "clone", "bare", "mirror"])
def clone(request: pytest.FixtureRequest, made: Made, tmp_path: Path) -> Path:
    if request.param == "as made":
        return made.upstream.root
    options = {"clone": (), "bare": ("--bare",), "mirror": ("--mirror",)}[request.param]
    return made.upstream.clone(tmp_path / "clone", *options)


@pytest.fixture
def bare(made: Made, tmp_path: Path) -> Iterator[Clone]:
    with Clone(made.upstream.clone(tmp_path / "bare", "--bare")) as opened:
        yield opened


def run(clone: Path, output: Path, *options: str) -> int:
    return survey.main(["--megatron", str(clone), "--output", str(output), *options])


def test_release_branches_are_those_of_main_and_of_dev(tmp_path: Path) -> None:
    upstream = Upstream(tmp_path / "upstream")
    upstream.commit({FILE: source(1)})
    for name in ("core_r0.1.0", "core_dev_r0.2.0", "core_dev", "fix-core_r0.1.0"):
        upstream.switch(name, "HEAD")
    with Clone(upstream.root) as clone:
        assert clone.release_branches() == ("core_dev_r0.2.0", "core_r0.1.0")


def test_ledger(made: Made, clone: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(clone, output) == 0
    found = json.loads(output.read_text())
    assert found["format"] == FORMAT
    ids = made.ids
    heads = {"main": ids["moved"], "dev": ids["dev"], "core_r0.1.0": ids["release"]}
    assert found["surveyed"] == heads
    assert found["targets"] == {
        RESET: {
            digest("reset", 1): {"main": made.short("root")},
            digest("reset", 2): {
                "releases": ["0.1.0"],
                "core_r0.1.0": made.short("second", "second"),
                "dev": made.short("second"),
                "main": made.short("second", "merge"),
            },
            digest("reset", 3): {"releases": ["0.1.1"], "core_r0.1.0": made.short("release")},
        },
        GET: {
            digest("get", 0): {
                "releases": ["0.1.0", "0.1.1"],
                "core_r0.1.0": made.short("second"),
                "dev": made.short("second"),
                "main": made.short("root", "main"),
            },
            digest("get", 4): {"main": made.short("merge", "back")},
        },
    }
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"survey: {ids['broken'][:12]}: {FILE}: does not parse: ")
    assert said[0].endswith("; left out")


def test_ledger_is_one_digest_a_line_and_the_same_each_time(made: Made, output: Path) -> None:
    run(made.upstream.root, output)
    text = output.read_text()
    assert len(re.findall(r'^"[0-9a-f]{16}": \{.*\},?$', text, re.MULTILINE)) == 5
    assert run(made.upstream.root, output) == 0
    assert output.read_text() == text
    assert ledger_file.as_text(ledger_file.load(output)) == text
    assert os.listdir(output.parent) == [output.name]
    assert output.stat().st_mode & 0o444 == 0o444


def test_check(
    made: Made, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(made.upstream.root, output)
    text = output.read_text()
    assert run(made.upstream.root, output, "--check") == 0
    assert capsys.readouterr().out.endswith("nothing is different\n")
    clone = made.upstream.clone(tmp_path / "newer")
    newer = Upstream.__new__(Upstream)
    newer.root, newer.day = clone, 20
    head = newer.commit({PACKAGE_FILE: source(7, get=None)})
    newer.git("update-ref", "refs/remotes/origin/main", head)
    assert run(clone, output, "--check") == 1
    assert capsys.readouterr().out.splitlines() == [
        f"main: {made.ids['moved'][:12]} -> {head[:12]}",
        *sorted(
            [
                f'{RESET}: {digest("reset", 1)}: {{"main": {json.dumps(made.short("root"))}}} -> '
                f'{{"main": {json.dumps(made.short("root", "moved"))}}}',
                f'{RESET}: {digest("reset", 7)} is new: {{"main": ["{head[:12]}"]}}',
            ]
        ),
    ]
    assert output.read_text() == text


def test_a_release_without_a_tag_is_read_from_its_folder(
    made: Made, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wheel" / FILE
    file.parent.mkdir(parents=True)
    (file.parent / "__init__.py").touch()
    file.write_text(source(1), encoding="utf-8")
    tree = ["--tree", f"0.1.9={tmp_path / 'wheel'}"]
    assert survey.main(["--megatron", str(made.upstream.root), "--output", str(output), *tree]) == 0
    found = ledger_file.load(output).targets[RESET][digest("reset", 1)]
    assert "0.1.9" in found["releases"]
    for wrong, why in (("0.1.9", "expected VERSION=DIR"), (f"new={tmp_path}", "new"),
                       (f"0.1.9={tmp_path}", "is not a Megatron tree")):  # fmt: skip
        with pytest.raises(SystemExit):
            survey.main(["--megatron", str(made.upstream.root), "--tree", wrong])
        assert why in capsys.readouterr().err


def test_check_says_which_targets_are_new(
    made: Made, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(made.upstream.root, output)
    monkeypatch.setattr(
        survey, "SERIES", (make_patch(Replace(RESET, reset), known=lambda _: "0" * 16),)
    )
    capsys.readouterr()
    assert run(made.upstream.root, output, "--check") == 1
    assert capsys.readouterr().out == f"{GET}: no target any more\n"


def test_what_an_origin_has_goes_before_what_is_checked_out(made: Made, tmp_path: Path) -> None:
    path = made.upstream.clone(tmp_path / "clone")
    made.upstream.git("branch", "mine", "HEAD~2", cwd=path)
    made.upstream.git("reset", "--quiet", "--hard", "HEAD~2", cwd=path)
    with Clone(path) as clone:
        found = clone.branches()
    assert found["main"] == made.ids["moved"]
    assert found["mine"] == made.ids["broken"]
    assert "HEAD" not in found


def test_not_a_clone(made: Made, output: Path, tmp_path: Path) -> None:
    inside = made.upstream.root / "megatron"
    for path in (tmp_path / "absent", tmp_path, inside):
        with pytest.raises(CloneError, match=r"git clone --no-checkout https://"):
            Clone(path)
        assert run(path, output) == 2
    assert not output.parent.exists()


def refused(clone: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a survey of ``clone`` fails; checks that it writes nothing."""
    output.parent.mkdir(exist_ok=True)
    output.write_text("as before")
    assert run(clone, output) == 2
    assert output.read_text() == "as before"
    assert os.listdir(output.parent) == [output.name]
    *_, last = capsys.readouterr().err.splitlines()
    return last


def test_shallow_clone(
    made: Made, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = made.upstream.clone(tmp_path / "shallow", "--depth", "1", "--no-single-branch")
    assert made.upstream.do(refused(clone, output, capsys)) == "fetch --unshallow"
    assert run(clone, output) == 0


@pytest.mark.parametrize("left_out", ["blob:none", "tree:0"])
def test_partial_clone(
    left_out: str, made: Made, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = made.upstream.clone(tmp_path / "partial", "--bare", "--filter", left_out)
    said = refused(clone, output, capsys)
    assert "partial clone" in said
    assert made.upstream.do(said).startswith("fetch --refetch --no-filter")
    assert run(clone, output) == 0


def test_branch_that_is_not_there(
    made: Made, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = made.upstream.clone(tmp_path / "single", "--single-branch")
    said = refused(clone, output, capsys)
    assert "has no branch dev" in said
    made.upstream.do(said)
    said = refused(clone, output, capsys)
    assert "has no branch core_r..." in said
    made.upstream.do(said)
    assert run(clone, output) == 0


def test_no_releases(
    made: Made, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = made.upstream.clone(tmp_path / "bare", "--bare")
    for tag in ("core_v0.1.0", "core_v0.1.1"):  # there is a release candidate still
        made.upstream.git("tag", "--delete", tag, cwd=clone)
    assert "has no tag of a release" in refused(clone, output, capsys)


def test_ledger_of_another_format(
    made: Made, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.parent.mkdir()
    output.write_text(json.dumps({"format": FORMAT + 6, "anything": "else"}))
    assert run(made.upstream.root, output, "--check") == 2
    said = capsys.readouterr().err
    assert f"has format {FORMAT + 6}" in said
    assert f"has format {FORMAT}:" in said


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", f'{{"format": {FORMAT}}}'])
def test_no_ledger_to_check(
    text: str | None, made: Made, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        output.parent.mkdir()
        output.write_text(text)
    assert run(made.upstream.root, output, "--check") == 2
    assert "write it with tools/survey.py" in capsys.readouterr().err


def test_nothing_is_left_of_what_cannot_be_written(
    made: Made,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def replace(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    assert "No space left on device" in refused(made.upstream.root, output, capsys)


def test_a_terminal_has_one_line_of_progress(
    made: Made, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(made.upstream.root, output) == 0
    shown = capsys.readouterr().err
    assert f"{ERASED}main 2025-08-03, " in shown
    assert shown.count("\n") == 1  # the line on the file that does not parse
    assert shown.endswith(ERASED)


@pytest.mark.parametrize(
    "options",
    [["--report", "--check"], ["--since", "2025-08-02"], ["--report", "--since", "yesterday"]],
)
def test_options_that_do_not_fit(
    options: list[str], made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        survey.main(["--megatron", str(made.upstream.root), *options])
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_commits(made: Made, bare: Clone) -> None:
    ids = made.ids
    commits = bare.first_parent("main")
    names = ["root", "other", "second", "main", "merge", "broken", "back", "moved"]
    assert [commit.id for commit in commits] == [ids[name] for name in names]
    assert commits[0] == Commit(ids["root"], None, "2025-08-01")
    assert commits[4].parent == ids["main"]
    assert commits[2].short == ids["second"][:12]
    assert bare.first_parent("main", since="2025-08-03") == commits[2:]
    assert bare.first_parent("main", since="2026-01-01") == []
    assert bare.releases() == {"0.1.0": ids["second"], "0.1.1": ids["release"]}
    assert bare.read(ids["release"], FILE) == source(3)
    assert bare.read(ids["moved"], FILE) is None
    assert bare.blobs_at(ids["moved"], [FILE, PACKAGE_FILE]).keys() == {PACKAGE_FILE}
    assert bare.changes(commits, [FILE]).keys() == {
        ids[name] for name in ("root", "second", "merge", "broken", "back", "moved")
    }


def test_states_since_a_day_begin_with_what_was_there(made: Made, bare: Clone) -> None:
    history = History(bare, targets_of([PATCH]))
    everything = list(history.states(bare.first_parent("main")))
    since = list(history.states(bare.first_parent("main", since="2025-08-03")))
    assert since == everything[1:]
    assert [state.commit.id for state in since] == [
        made.ids[name] for name in ("second", "merge", "broken", "back", "moved")
    ]
    assert since[0].digests == {RESET: digest("reset", 2), GET: digest("get", 0)}
    assert since[0].changed == {RESET: digest("reset", 1)}
    assert since[2].digests == {RESET: None, GET: None}
    assert since[-1].digests == {RESET: digest("reset", 1), GET: None}
    assert since[-1].changed == {GET: digest("get", 4)}
    # Six versions of the file, each read once; the last one is that of a package.
    assert history.blobs_read == 6
    assert list(history.states([])) == []


def test_reader_is_one_that_the_judge_takes(made: Made, bare: Clone) -> None:
    def state(commit: str) -> Verdict:
        return judge(PATCH, bare.reader(made.ids[commit])).verdict

    assert state("root") == state("back") == state("moved") == Verdict.APPLICABLE
    assert state("second") == Verdict.DRIFTED
    assert state("broken") == Verdict.DRIFTED
    assert bare.reader(made.ids["root"])("megatron.core.absent") is None


def test_a_definition_that_is_there_twice_is_left_out(
    tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream = Upstream(tmp_path / "upstream")
    upstream.commit({FILE: source(1)})
    upstream.git("tag", "core_v0.1.0")
    twice = upstream.commit({FILE: source(1, get=None) + method("reset", 2) + method("get", 2)})
    (upstream.root / FILE).unlink()
    (upstream.root / FILE).symlink_to("nowhere")
    upstream.commit({"README.md": ""})
    for branch in ("dev", "core_r0.1.0"):
        upstream.git("branch", branch)
    assert run(upstream.root, output) == 0
    assert f"{twice[:12]}: {FILE}: {RESET} is defined 2 times" in capsys.readouterr().err
    main = {
        target: {found: entry.get("main") for found, entry in digests.items()}
        for target, digests in json.loads(output.read_text())["targets"].items()
    }
    assert main[RESET].keys() == {digest("reset", 1)}
    assert main[GET][digest("get", 2)] == [twice[:12]] * 2


def test_report(
    made: Made, clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.json"
    arguments = ["--megatron", str(clone), "--report", "--json", str(output)]
    assert survey.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("main: 6 first-parent commits touch the targets, from ")
    assert "3 of them have a drifted patch; of 6 pairs" in text
    assert "3 are drifted (50.0%)" in text
    assert "sample: drifted at 3 of 6 commits that need it" in text
    assert f"        {digest('reset', 2)}: 2\n" in text
    report = json.loads(output.read_text())
    assert report["summary"] == {
        "commits": 6,
        "drifted_commits": 3,
        "pairs": 6,
        "drifted_pairs": 3,
    }
    assert report["head"] == made.ids["moved"]
    (patch,) = report["patches"]
    assert (patch["first"], patch["last"]) == (made.ids["second"], made.ids["broken"])
    assert patch["missed"] == [{"target": RESET, "digest": digest("reset", 2), "commits": 2}]
    ((reason, count),) = patch["others"].items()
    assert "does not parse" in reason
    assert count == 1
    assert survey.main([*arguments, "--since", "2025-08-11"]) == 0
    assert "main: 1 first-parent commits" in capsys.readouterr().out
    assert survey.main([*arguments, "--branch", "absent"]) == 2
    assert "has no branch absent" in capsys.readouterr().err


def test_report_judges_the_same_source_once(
    made: Made, bare: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.history import drift

    calls: list[Any] = []

    def counted(patch: Patch, read: Any) -> Any:
        calls.append(patch)
        return judge(patch, read)

    monkeypatch.setattr(drift, "judge", counted)
    commits = bare.first_parent("main")
    rows = drift.judged(bare, commits, [PATCH])
    assert [bool(row.drifted) for row in rows] == [
        judge(PATCH, bare.reader(commit.id)).verdict == Verdict.DRIFTED for commit in commits
    ]
    # root, second, merge, broken, back, moved
    assert len(calls) == 6 < len(commits)


def test_ledger_of_the_package() -> None:
    """It has the form that the tool writes, and the targets that the records ask for."""
    found = ledger_file.load(survey.SOURCES)
    assert ledger_file.as_text(found) == survey.SOURCES.read_text(encoding="utf-8")
    assert tuple(found.targets) == targets_of(SERIES), "run tools/survey.py"
    assert all(re.fullmatch(r"[0-9a-f]{40}", head) for head in found.surveyed.values())
    for digests in found.targets.values():
        for name, entry in digests.items():
            assert re.fullmatch(r"[0-9a-f]{16}", name)
            assert entry.keys() - {"releases"} <= found.surveyed.keys()
            for branch in entry.keys() - {"releases"}:
                assert len(entry[branch]) in (1, 2)
                assert all(re.fullmatch(r"[0-9a-f]{12}", commit) for commit in entry[branch])


def test_ledger_of_the_package_has_the_installed_release() -> None:
    targets = ledger_file.load(survey.SOURCES).targets
    found = {target: find_definition(target, read_source) for target in targets}
    there = {target: definition.digest for target, definition in found.items() if definition}
    assert there
    assert [t for t, digest in there.items() if digest not in targets[t]] == []
