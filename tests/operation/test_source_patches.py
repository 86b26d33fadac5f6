"""The series as source of the installed release: with git, in place, and back again."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_patch.backports import SERIES
from megatron_patch.model import Origin
from megatron_patch.source_tree import SourceTree

from ..conftest import RELEASE
from ..unit.source_trees import add_compiled, git, repository
from .test_command import megatron_patch_command

CORE = Path("megatron", "core")
ALL = [option for patch in SERIES for option in ("--only", patch.id)]
# Those of Megatron's pyproject.toml. All files that we touch are stable under its version of black.
BLACK = ["--line-length=100", "--skip-string-normalization", "--skip-magic-trailing-comma"]


def run(*arguments: str | Path, path: Path | None = None, **variables: str) -> str:
    done = megatron_patch_command(*map(str, arguments), path=path, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_a_group_is_exported_by_its_name(tmp_path):
    """Those patches of the group that fit the release, and no others."""
    tree = SourceTree.installed().root
    listed = json.loads(run("check", "--json", "--megatron", tree))["patches"]
    fitting = {entry["id"] for entry in listed if entry["verdict"] == "applicable"}
    run("export", "--only", "upstream", "--megatron", tree, "--output", tmp_path / "series")
    group = {p.id for p in SERIES if p.default and p.origin is Origin.UPSTREAM}
    found = {path.stem.partition("-")[2] for path in (tmp_path / "series").glob("*.patch")}
    assert found == fitting & group


def verdicts(root: Path) -> dict[str, str]:
    report = json.loads(run("check", "--json", "--megatron", root))
    return {patch["id"]: patch["verdict"] for patch in report["patches"]}


def copy(root: Path) -> Path:
    released = SourceTree.installed().root / CORE
    shutil.copytree(released, root / CORE, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def contents(root: Path) -> dict[Path, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    named = {path.relative_to(root): path.read_bytes() for path in files}
    return {p: content for p, content in named.items() if not {".git", "__pycache__"} & {*p.parts}}


@pytest.fixture(scope="module")
def released(tmp_path_factory):  # type: ignore[no-untyped-def]
    """A copy of the release, which no test changes."""
    return copy(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def needed(released) -> list[str]:  # type: ignore[no-untyped-def]
    """The patches that the release needs."""
    return [id for id, verdict in verdicts(released).items() if verdict == "applicable"]


@pytest.fixture(scope="module")
def patched(tmp_path_factory):  # type: ignore[no-untyped-def]
    """A repository of the release with the whole series on top, also what is off by default."""
    root = copy(tmp_path_factory.mktemp("patched"))
    repository(root)
    output = tmp_path_factory.mktemp("exported") / "series" / str(RELEASE)
    run("export", "--megatron", root, "--output", output, *ALL)
    names = (output / "series").read_text().split()
    if names:  # without a file, git would read from the terminal
        git("am", "-q", *(str(output / name) for name in names), cwd=root)
    return root


@pytest.fixture(scope="module")
def changed(released, patched, needed) -> list[Path]:  # type: ignore[no-untyped-def]
    """The files that the series edits."""
    if not needed:
        pytest.skip(f"megatron-core {RELEASE} needs none of the patches")
    before, after = contents(released), contents(patched)
    assert before.keys() == after.keys()
    return [path for path in after if after[path] != before[path]]


def test_git_am_takes_a_commit_for_each_patch_that_the_release_needs(patched, needed):
    summaries = [patch.summary for patch in SERIES if patch.id in needed]
    log = git("log", "--reverse", "--format=%s", cwd=patched).splitlines()
    assert log == ["as it was", *summaries]
    assert git("status", "--porcelain", cwd=patched) == ""


def test_afterwards_check_says_that_nothing_is_to_be_done(released, patched, needed):
    before = verdicts(released)
    assert set(before.values()) <= {"applicable", "upstreamed", "not_applicable"}
    assert verdicts(patched) == {**before, **dict.fromkeys(needed, "upstreamed")}


def test_afterwards_a_process_leaves_it_alone(patched, needed):
    add_compiled(patched)
    names = ",".join(patch.id for patch in SERIES)
    report = json.loads(run("status", "--json", path=patched, MEGATRON_PATCH=names))
    states = {patch["id"]: patch["state"] for patch in report["patches"]}
    settled = {"upstreamed", "not_applicable"}
    # Releases without an HTTP server for the dynamic engine have none to judge.
    waiting = {patch.id for patch in SERIES if patch.may_stay_pending}
    assert all(state in settled for id, state in states.items() if id not in waiting)
    # Without Triton, 0.16 has no Mamba layers to import.
    judged = [id for id in needed if id not in waiting or states[id] != "pending"]
    assert {id: states[id] for id in judged} == dict.fromkeys(judged, "upstreamed")


def test_by_default_what_is_opt_in_is_left_out(released, needed, tmp_path):
    run("export", "--megatron", released, "--output", tmp_path)
    names = [
        f"{number:04}-{patch.id}.patch"
        for number, patch in enumerate(SERIES, 1)
        if patch.id in needed and patch.default
    ]
    assert (tmp_path / "series").read_text().split() == names


def test_the_source_reads_as_if_it_had_been_written_there(released, patched, changed):
    for path in changed:
        text = (patched / path).read_text(encoding="utf-8")
        ast.parse(text)
        for word in ("megatron_patch", "megatron-patch", "type: ignore", "self: Any"):
            assert text.count(word) == (released / path).read_text(encoding="utf-8").count(word)


@pytest.mark.parametrize("tree", ["released", "patched"])
def test_it_is_formatted_as_megatron_is(tree, changed, tmp_path, request):
    root = request.getfixturevalue(tree)
    files = [str(root / path) for path in changed]
    done = subprocess.run(
        [sys.executable, "-m", "black", "--diff", "--quiet", *BLACK, *files],
        env={**os.environ, "BLACK_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_apply_makes_the_same_files_and_revert_takes_them_back(released, patched, needed, tmp_path):
    root = copy(tmp_path)
    here = ("--megatron", root)
    foreseen = run("apply", *here, "--dry-run", *ALL)
    assert contents(root) == contents(released)
    told = run("apply", *here, *ALL)
    assert told == foreseen.replace("would change", "changed")
    after, expected = contents(root), contents(patched)
    assert {path: after[path] for path in expected} == expected
    again = run("apply", *here, *ALL)
    assert again.splitlines()[-1] == "nothing to change"
    assert contents(root) == after
    if needed:
        assert "put back" in run("revert", *here)
    assert contents(root) == contents(released)
