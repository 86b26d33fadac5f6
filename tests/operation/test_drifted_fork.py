"""A fork of the release with one method of its own: what fits is exported all the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from megatron_patch.backports import SERIES
from megatron_patch.edits import Target, is_known_by_digest
from megatron_patch.source_tree import SourceTree
from megatron_patch.verdicts import find_definition

from ..unit.source_trees import git, repository
from .test_command import megatron_patch_command
from .test_source_patches import contents, copy, verdicts

ID = "block-allocator-reset"  # which all releases need, for a part of a method


def export(root: Path, output: Path, *arguments: str, **variables: str):  # type: ignore[no-untyped-def]
    here = ("--megatron", str(root), "--output", str(output))
    done = megatron_patch_command("export", *here, *arguments, **variables)
    return done, (output / "series").read_text().split()


@pytest.fixture(scope="module")
def drifted(tmp_path_factory) -> tuple[Path, list[str]]:  # type: ignore[no-untyped-def]
    """The fork, and the default patches that the release needs."""
    root = copy(tmp_path_factory.mktemp("fork"))
    needed = [id for id, verdict in verdicts(root).items() if verdict == "applicable"]
    (patch,) = (patch for patch in SERIES if patch.id == ID)
    tree = SourceTree.at(root)
    found = {
        edit.target: find_definition(edit.target, tree.read)
        for variant in patch.variants
        for edit in variant.edits
        if is_known_by_digest(edit)
    }
    target, definition = next((t, d) for t, d in found.items() if d is not None)
    file = tree.path(Target.parse(target).module)
    assert file is not None
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    last = definition.node.body[-1]
    margin = " " * last.col_offset
    lines.insert(last.end_lineno or 0, f"{margin}self.fork_was_here = True\n")
    file.write_text("".join(lines), encoding="utf-8")
    return root, [p.id for p in SERIES if p.id in needed and p.default]


def test_what_fits_is_exported_and_what_does_not_is_said(drifted, tmp_path):
    root, needed = drifted
    done, names = export(root, tmp_path / "series")
    assert done.returncode == 3, done.stderr
    assert f"skipped {ID}: drifted" in done.stderr
    fitting = [id for id in needed if id != ID]
    assert [name[5:].removesuffix(".patch") for name in names] == fitting
    fork = tmp_path / "fork"
    for path, content in contents(root).items():
        (fork / path).parent.mkdir(parents=True, exist_ok=True)
        (fork / path).write_bytes(content)
    repository(fork)
    if names:
        git("am", "-q", *(str(tmp_path / "series" / name) for name in names), cwd=fork)
    after = verdicts_of_drifted(fork)
    assert after[ID] == "drifted"
    assert {after[id] for id in fitting} <= {"upstreamed"}


def verdicts_of_drifted(root: Path) -> dict[str, str]:
    done = megatron_patch_command("check", "--json", "--megatron", str(root))
    assert done.returncode == 3, done.stderr
    return {patch["id"]: patch["verdict"] for patch in json.loads(done.stdout)["patches"]}


def test_accepted_it_is_exported_with_the_others(drifted, tmp_path):
    root, needed = drifted
    checked = megatron_patch_command("check", ID, "--diff", "--megatron", str(root))
    assert checked.returncode == 3, checked.stderr
    assert "this edit fits:" in checked.stdout
    (line,) = re.findall(r"MEGATRON_PATCH_ACCEPT=(\S+)$", checked.stdout, re.M)
    done, names = export(root, tmp_path, MEGATRON_PATCH_ACCEPT=line)
    assert done.returncode == 0, done.stderr
    assert [name[5:].removesuffix(".patch") for name in names] == needed


def test_the_difference_to_the_release_is_that_line(drifted):
    root, _ = drifted
    known = str(SourceTree.installed().root)
    here = ("--megatron", str(root), "--against", known)
    checked = megatron_patch_command("check", ID, "--diff", *here)
    changed = [x for x in checked.stdout.splitlines() if re.match(r"[+-](?![+-]{2} )", x)]
    assert [line.split() for line in changed] == [["+", "self.fork_was_here", "=", "True"]]
