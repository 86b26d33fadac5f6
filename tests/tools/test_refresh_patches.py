"""What is made from the records, in a made-up repository with made-up pins."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from megatron_patch.backports import SERIES
from megatron_patch.edits import Replace
from megatron_patch.model import Patch
from megatron_patch.outlines import digest_of as digest_of_text
from tests.unit.sample import digest_in, make_patch
from tools import add_pin, pins, refresh_patches

from .test_pin_report import FIXED, ORIGINAL, OTHER, TARGET, WITHOUT, count, digest_of
from .test_pins import Index

SYMPTOMS = refresh_patches.SYMPTOMS

TOX_INI = """\
[tox]
env_list =
    lint
    py{310,311}-mcore{100,101}
    py312-mcore102

[testenv]
deps =
    py310,py311: torch==1
    mcore100: megatron-core==1.0.0
    mcore101: megatron-core==1.1.0
    mcore102: megatron-core==1.2.0
    setuptools
set_env =
    # a comment
    mcore100: EXPECTED_MEGATRON_CORE = 1.0.0
    mcore101: EXPECTED_MEGATRON_CORE = 1.1.0
    mcore102: EXPECTED_MEGATRON_CORE = 1.2.0
"""
README = f"# Title\n\n{refresh_patches.BEGIN}\nold\n{refresh_patches.END}\n\nThe end.\n"


def sample(id: str = "sample", target: str = TARGET) -> Patch:
    return make_patch(
        Replace(target, count),
        known=digest_in(ORIGINAL),
        id=id,
        has_it={target: digest_of(FIXED)},
    )


class Project:
    """A repository with three pins: one to patch, one that is fixed, one without the target."""

    def __init__(self, root: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
        self.root = root / "project"
        self.cache = root / "cache"
        self.monkeypatch = monkeypatch
        self.index = Index(monkeypatch)
        self.index.add("1.0.0", thing=ORIGINAL)
        self.index.add("1.1.0", thing=FIXED)
        self.index.add("1.2.0", thing=WITHOUT)
        self.root.mkdir()
        self.write("tox.ini", TOX_INI)
        self.write("README.md", README)
        self.set_series(sample())
        for tool in (refresh_patches, add_pin):
            monkeypatch.setattr(tool, "REPOSITORY", self.root)

    def set_series(self, *series: Patch) -> None:
        for tool in (refresh_patches, add_pin):
            self.monkeypatch.setattr(tool, "SERIES", series)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def read(self, path: str) -> str:
        return (self.root / path).read_text(encoding="utf-8")

    def files(self) -> dict[str, bytes]:
        found = (path for path in self.root.rglob("*") if path.is_file())
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in found}

    def refresh(self, *arguments: str) -> int:
        return refresh_patches.main([*arguments, "--cache", str(self.cache)])

    def cells(self, id: str = "sample") -> list[str]:
        """The row of a patch in `patches/README.md`."""
        lines = self.read("patches/README.md").splitlines()
        (row,) = (line for line in lines if line.startswith(f"| `{id}` |"))
        return row.removesuffix(" |").split(" | ")[1:]


@pytest.fixture
def project(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    return Project(tmp_path, monkeypatch)


def test_each_pin_gets_the_patches_that_fit_it(project):
    assert project.refresh() == 0
    assert sorted(project.files()) == [
        "README.md",
        SYMPTOMS,
        refresh_patches.OUTLINES,
        "patches/1.0.0/0001-sample.patch",
        "patches/1.0.0/series",
        "patches/1.1.0/series",
        "patches/1.2.0/series",
        "patches/README.md",
        "tox.ini",
    ]
    assert project.read("patches/1.0.0/series") == "0001-sample.patch\n"
    assert project.read("patches/1.1.0/series") == ""
    assert project.cells() == ["[0001](1.0.0/0001-sample.patch)", "upstreamed", "not_applicable"]


def test_the_files_of_all_pins_are_outlined(project):
    project.refresh()
    found = json.loads(project.read(refresh_patches.OUTLINES))
    name = TARGET.partition(":")[2]
    assert found.keys() == set(map(digest_of_text, (ORIGINAL, FIXED, WITHOUT)))
    first, last, digest = found[digest_of_text(ORIGINAL)]["places"][name]
    assert digest == digest_of(ORIGINAL)
    assert "\n".join(ORIGINAL.splitlines()[first - 1 : last]).strip().startswith("def ")
    assert found[digest_of_text(WITHOUT)]["places"] == {name: None}


def test_git_takes_what_is_written(project, tmp_path):
    project.refresh()
    with pins.source("1.0.0", project.cache) as tree:
        for command in (
            ["git", "init", "--quiet"],
            ["git", "add", "."],
            ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "a"],
            ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "am", "--quiet"]
            + [str(path) for path in project.root.glob("patches/1.0.0/*.patch")],
        ):
            subprocess.run(command, cwd=tree.root, check=True, timeout=60)
        assert tree.read("megatron.core.thing") == FIXED


def test_a_patch_that_is_off_by_default_is_in_the_tables_and_in_no_series(project):
    project.set_series(sample("opted-for")._replace(default=False), sample())
    assert project.refresh() == 0
    assert project.read("patches/1.0.0/series") == "0002-sample.patch\n"
    assert project.cells("opted-for") == ["opt-in", "upstreamed", "not_applicable"]
    assert "- Only when it is selected by name.\n" in project.read("patches/README.md")
    assert "| [`opted-for`](docs/symptoms.md#opted-for) (opt-in) |" in project.read("README.md")
    assert "With the patch: some. Only when it is selected by name." in project.read(SYMPTOMS)


def test_the_table_of_the_readme(project):
    project.refresh()
    versions = "1.0.0 | 1.1.0 | 1.2.0"
    head = f"| id | origin | kind | {versions} |\n|---|---|---|---|---|---|\n"
    link = "outside [#1](https://github.com/NVIDIA/Megatron-LM/pull/1)"
    id = "[`sample`](docs/symptoms.md#sample)"
    row = f"| {id} | {link} | correctness | patched | has it |  |\n"
    table = f"{refresh_patches.BEGIN}\n{head}{row}{refresh_patches.END}"
    assert project.read("README.md") == f"# Title\n\n{table}\n\nThe end.\n"


def test_the_page_that_is_searched_for_what_is_wrong(project):
    symptom = "IndexError: list index out of range in add_request() ends the engine"
    project.set_series(sample()._replace(symptom=symptom, outcome="the request goes on"))
    project.refresh()
    text = project.read(SYMPTOMS)
    assert "## sample\n\nIndexError: list index out of range in `add_request()` ends" in text
    assert "On 1.0.0. With the patch: the request goes on.\n" in text


@pytest.mark.parametrize("text", ["# Title\n", f"a\n{refresh_patches.BEGIN}\nb\n"])
def test_a_readme_without_both_markers_stays(project, text):
    project.write("README.md", text)
    assert project.refresh() == 0
    assert project.read("README.md") == text


def test_the_sections_are_made_from_the_records(project):
    project.refresh()
    text = project.read("patches/README.md")
    assert "git am ~/megatron_patch/patches/1.0.0/*.patch" in text
    section = text[text.index("## sample") :]
    for words in (
        "a sample.",
        "Without it: none.",
        "With it: some.",
        "pull/1)",
        "of 2026-01-01",
        "9.9.",
        "never.",
    ):
        assert words in section


def test_a_patch_of_ours_links_to_what_upstream_is_to_be_told(project):
    fields = dict.fromkeys(("upstream_pr", "upstream_commit", "upstream_date", "fixed_in"))
    project.set_series(sample()._replace(**fields))
    assert project.refresh() == 0
    section, table = project.read("patches/README.md"), project.read("README.md")
    assert "Upstream: has no such change; [what we know](../docs/upstream/sample.md)." in section
    assert "| [ours](docs/upstream/sample.md) |" in table
    assert "None" not in section + table


def test_upstream_is_to_be_told_of_each_patch_of_ours():
    for patch in SERIES:
        report = refresh_patches.REPOSITORY / "docs" / "upstream" / f"{patch.id}.md"
        assert report.is_file() == (patch.upstream_pr is None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reset() of megatron.core.a_b: 2", "`reset()` of `megatron.core.a_b`: 2"),
        ("_private and __init__", "`_private` and `__init__`"),
        ("`x[i] -= 1` counts", "`x[i] -= 1` counts"),
        ("a*b <c> [d] | e\\f _", "a\\*b \\<c> \\[d\\] \\| e\\\\f \\_"),
        ("`a | b`", "`a \\| b`"),
    ],
)
def test_text_of_a_record_in_markdown(text, expected):
    assert refresh_patches.markdown(text) == expected


def test_a_second_run_changes_nothing(project, capsys):
    project.refresh()
    before = project.files()
    times = [path.stat().st_mtime_ns for path in project.root.rglob("*")]
    capsys.readouterr()
    assert project.refresh() == 0
    assert capsys.readouterr().out == "all files are up to date\n"
    assert project.files() == before
    assert [path.stat().st_mtime_ns for path in project.root.rglob("*")] == times
    assert project.refresh("--check") == 0
    assert project.index.asked == ["1.0.0", "1.1.0", "1.2.0"]


def test_what_is_stale_is_removed(project, capsys):
    project.refresh()
    before = project.files()
    project.write("patches/0.9.0/0001-sample.patch", "of a pin that is gone")
    project.write("patches/1.0.0/0002-gone.patch", "of a record that is gone")
    project.write("patches/notes.txt", "")
    assert project.refresh() == 0
    assert "removed patches/0.9.0/0001-sample.patch\n" in capsys.readouterr().out
    assert project.files() == before
    assert not (project.root / "patches" / "0.9.0").exists()


def test_check_names_what_is_missing_changed_or_stale_and_writes_nothing(project, capsys):
    assert project.refresh("--check") == 1
    assert sorted(project.files()) == ["README.md", "tox.ini"]
    project.refresh()
    (project.root / "patches/1.1.0/series").unlink()
    project.write("patches/1.0.0/0001-sample.patch", "")
    project.write("patches/1.0.0/0009-gone.patch", "")
    project.write("README.md", README)
    before = project.files()
    capsys.readouterr()
    assert project.refresh("--check") == 1
    assert capsys.readouterr().out == (
        "4 files are out of date: run tools/refresh_patches.py\n"
        "  README.md\n"
        "  patches/1.0.0/0001-sample.patch\n"
        "  patches/1.0.0/0009-gone.patch\n"
        "  patches/1.1.0/series\n"
    )
    assert project.files() == before


def test_a_drifted_patch_is_left_out_and_fails_the_command(project, capsys):
    project.set_series(sample(), sample("other", TARGET.replace("thing", "another")))
    project.index.add("1.0.0", thing=ORIGINAL, another=OTHER)
    for arguments in ([], ["--check"]):
        assert project.refresh(*arguments) == 1
        assert "drifted: other on 1.0.0: unknown source" in capsys.readouterr().err
    assert project.cells("other") == ["drifted", "not_applicable", "not_applicable"]
    assert project.read("patches/1.0.0/series") == "0001-sample.patch\n"


def test_edits_that_do_not_fit_known_source(project, capsys):
    def count(self, more):  # type: ignore[no-untyped-def]
        return 2

    project.set_series(make_patch(Replace(TARGET, count), known=digest_in(ORIGINAL)))
    project.index.add("1.1.0", thing=ORIGINAL)
    before = project.files()
    assert project.refresh() == 1
    assert "refresh_patches: sample:" in capsys.readouterr().err
    assert project.files() == before


def test_one_pin(project, capsys):
    project.write("patches/1.0.0/0009-gone.patch", "")
    project.write("patches/0.9.0/series", "")
    assert project.refresh("--only-pin", "1.0.0") == 0
    assert set(project.files()) == {
        "README.md",
        "patches/0.9.0/series",
        "patches/1.0.0/0001-sample.patch",
        "patches/1.0.0/series",
        "tox.ini",
    }
    assert project.read("README.md") == README
    assert project.index.asked == ["1.0.0"]
    assert project.refresh("--only-pin", "1.0.0", "--check") == 0
    assert project.refresh("--only-pin", "1.1.0", "--check") == 1
    assert project.refresh("--only-pin", "1.0.1") == 2
    assert "1.0.1 is not a pin; expected one of 1.0.0, 1.1.0, 1.2.0" in capsys.readouterr().err


def test_a_pin_that_cannot_be_had(project, capsys):
    del project.index.files["1.1.0"]
    before = project.files()
    assert project.refresh() == 2
    assert "refresh_patches: pip cannot get 1.1.0" in capsys.readouterr().err
    assert project.files() == before


def test_the_directories_of_this_repository_are_those_of_the_pins():
    patches = pins.REPOSITORY / "patches"
    pinned = pins.read_pins((pins.REPOSITORY / "tox.ini").read_text())
    assert {path.name for path in patches.iterdir()} == {
        "README.md",
        *(pin.version for pin in pinned),
    }
    for pin in pinned:
        directory = patches / pin.version
        listed = (directory / "series").read_text().split()
        assert sorted(path.name for path in directory.glob("*.patch")) == listed
