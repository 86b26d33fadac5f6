"""The exported files: what is in them, and what git makes of them."""

from __future__ import annotations

import email
from pathlib import Path

import pytest

from megatron_patch import export
from megatron_patch.edits import Before, Edit, Substitute
from megatron_patch.errors import TreeError
from megatron_patch.model import Patch

from .sample import digest_in, make_patch
from .source_trees import MODULE, PATH, git, made, repository, write
from .trees import python

TEXT = '''\
import os


class Thing:
    def one(self):
        """Doc."""
        total = 1
        return total  # \u20ac

    def two(self):
        return 2

    def three(self):
        return 3
'''
FORMS = {
    "lf": (TEXT.encode(), []),
    "crlf": (TEXT.replace("\n", "\r\n").encode(), ["--keep-cr"]),
    "no newline at the end": (TEXT.removesuffix("\n").encode(), []),
    "crlf, no newline at the end": (
        TEXT.removesuffix("\n").replace("\n", "\r\n").encode(),
        ["--keep-cr"],
    ),
    "latin-1": (f"# coding: latin-1\n{TEXT}".replace("\u20ac", "\xe9").encode("latin-1"), []),
}


def hook(self) -> None:  # type: ignore[no-untyped-def]
    self.log = 1


ONE, TWO, THREE = (f"{MODULE}:Thing.{name}" for name in ("one", "two", "three"))


def patch_of(*edits: Edit, id: str = "sample") -> Patch:
    return make_patch(*edits, known=digest_in(TEXT), id=id)


SERIES = (
    patch_of(Substitute(ONE, "total = 1", "total = 10"), id="ten"),
    patch_of(Substitute(TWO, "2", "20"), id="twenty"),
    patch_of(Substitute(THREE, "return 3", "return 30"), id="thirty"),
    patch_of(Before(ONE, hook), id="hook"),
)
RECORD = SERIES[0]._replace(
    summary="Make it ten",
    symptom=f"{'it is one where ten is expected, ' * 3}see the log.",
    upstream_pr=1234,
    upstream_commit="0123456789abcdef" * 2 + "01234567",
    upstream_date="2026-02-03",
    fixed_in="0.18.0",
    updated="2026-11-24",
)


def exported(tmp_path: Path, text: str | bytes = TEXT, series=SERIES) -> list[Path]:  # type: ignore[no-untyped-def]
    """The patch files, without ``series``, of a tree in ``tmp_path/tree``."""
    return export.write(made(write(tmp_path / "tree", text), series), tmp_path / "out")[1:]


def test_the_whole_file(tmp_path):
    (path,) = exported(tmp_path, series=[RECORD])
    assert path == tmp_path / "out" / "0001-ten.patch"
    new = TEXT.replace("total = 1", "total = 10")
    before, after = (export._blob(text.encode()) for text in (TEXT, new))
    expected = f"""\
From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001
From: megatron_patch <megatron-patch@noreply.invalid>
Date: Tue, 03 Feb 2026 00:00:00 +0000
Subject: [PATCH] Make it ten

Description: Make it ten. Without it: it is one where ten is expected,
 it is one where ten is expected, it is one where ten is expected, see
 the log.
Origin: backport, https://github.com/NVIDIA/Megatron-LM/pull/1234,
 commit:0123456789abcdef0123456789abcdef01234567
Applied-Upstream: 0.18.0, https://github.com/NVIDIA/Megatron-LM/commit/0123456789abcdef0123456789abcdef01234567
Last-Update: 2026-11-24
---

diff --git a/megatron/core/thing.py b/megatron/core/thing.py
index {before}..{after} 100644
--- a/megatron/core/thing.py
+++ b/megatron/core/thing.py
@@ -4,7 +4,7 @@
 class Thing:
     def one(self):
         \"\"\"Doc.\"\"\"
-        total = 1
+        total = 10
         return total  # \u20ac
\x20
     def two(self):
--\x20
megatron_patch
"""
    assert path.read_text(encoding="utf-8") == expected


def test_it_is_a_mail_with_dep_3_fields(tmp_path):
    (path,) = exported(tmp_path, series=[RECORD])
    envelope, _, text = path.read_bytes().partition(b"\n")
    assert envelope.startswith(b"From ")
    mail = email.message_from_bytes(text)
    assert dict(mail.items()).keys() == {"From", "Date", "Subject"}
    assert not mail.defects
    payload = mail.get_payload()
    assert isinstance(payload, str)
    fields = email.message_from_string(payload.partition("\n---\n")[0])
    assert list(fields) == ["Description", "Origin", "Applied-Upstream", "Last-Update"]
    assert not fields.defects


def test_a_patch_of_ours_is_said_to_be_that(tmp_path):
    ours = RECORD._replace(
        upstream_pr=None, upstream_commit=None, upstream_date=None, fixed_in=None
    )
    (path,) = exported(tmp_path, series=[ours])
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"From {'0' * 40} Mon Sep 17 00:00:00 2001\n")
    assert "\nDate: Tue, 24 Nov 2026 00:00:00 +0000\n" in text
    assert "\nOrigin: vendor\nForwarded: no\nLast-Update: 2026-11-24\n---\n" in text
    assert "Applied-Upstream" not in text
    assert "None" not in text


def test_the_names_of_the_contents_are_those_of_git(tmp_path):
    for name in ("one", "none"):
        file = tmp_path / name
        file.write_bytes(TEXT.encode() if name == "one" else b"")
        assert export._blob(file.read_bytes()) == git("hash-object", name, cwd=tmp_path).strip()


def test_series_lists_the_files_in_order(tmp_path):
    names = [path.name for path in exported(tmp_path)]
    assert names == ["0001-ten.patch", "0002-twenty.patch", "0003-thirty.patch", "0004-hook.patch"]
    assert (tmp_path / "out" / "series").read_text() == "".join(f"{name}\n" for name in names)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*names, "series"]


@pytest.mark.parametrize("form", FORMS)
def test_git_am_makes_exactly_the_edited_text(tmp_path, form):
    text, options = FORMS[form]
    root = tmp_path / "tree"
    paths = exported(tmp_path, text)
    (root / PATH).chmod(0o755)
    repository(root)
    git("am", "-q", *options, *map(str, paths), cwd=root)
    edits = made(write(tmp_path / "again", text), SERIES)
    assert (root / PATH).read_bytes() == edits[-1].files[0].after
    assert (root / PATH).stat().st_mode & 0o777 == 0o755
    assert git("status", "--porcelain", cwd=root) == ""
    assert git("log", "--format=%s", cwd=root).splitlines() == ["a sample"] * 4 + ["as it was"]
    for number, made_patch in enumerate(reversed(edits)):
        there = git("rev-parse", f"HEAD~{number}:{PATH}", cwd=root).strip()
        assert there == export._blob(made_patch.files[0].after)


def test_what_git_am_records(tmp_path):
    paths = exported(tmp_path, series=[RECORD])
    repository(tmp_path / "tree")
    git("am", "-q", *map(str, paths), cwd=tmp_path / "tree")
    log = git("log", "-1", "--format=%an%n%aI%n%B", cwd=tmp_path / "tree")
    author, date, body = log.split("\n", 2)
    assert (author, date[:19]) == ("megatron_patch", "2026-02-03T00:00:00")
    head = paths[0].read_text(encoding="utf-8").split("\n\n", 1)[1].partition("---\n")[0]
    assert body.strip() == f"Make it ten\n\n{head.strip()}"


def test_git_takes_the_patches_where_lines_have_moved(tmp_path):
    root = tmp_path / "tree"
    paths = [str(path) for path in exported(tmp_path)]
    moved = "import sys\n" * 40 + TEXT.replace(
        "class Thing", "class Above:\n    x = 1\n\n\nclass Thing"
    )
    write(root, moved)
    repository(root)
    for path in paths:
        git("apply", "--check", path, cwd=root)
        git("am", "-q", path, cwd=root)
    assert (root / PATH).read_text(encoding="utf-8") == moved.replace(
        "        total = 1\n", "        self.log = 1\n        total = 10\n"
    ).replace("return 2", "return 20").replace("return 3", "return 30")


def test_each_patch_can_be_taken_alone(tmp_path):
    for patch in SERIES:
        root = tmp_path / patch.id / "tree"
        (path,) = exported(tmp_path / patch.id, series=[patch])
        repository(root)
        git("apply", "--check", str(path), cwd=root)


def test_a_patch_of_several_files(tmp_path):
    root = tmp_path / "tree"
    write(root, TEXT, "megatron.core.other")
    other = Substitute("megatron.core.other:Thing.two", "2", "20")
    (path,) = exported(tmp_path, series=[patch_of(Substitute(TWO, "2", "20"), other)])
    repository(root)
    git("am", "-q", str(path), cwd=root)
    changed = git("show", "--format=", "--name-only", cwd=root).split()
    assert changed == ["megatron/core/other.py", PATH]


def test_the_bytes_do_not_depend_on_the_process(tmp_path):
    script = """
import sys
from pathlib import Path
from tests.unit.test_export import SERIES, TEXT, exported
exported(Path(sys.argv[1]))
"""
    contents = []
    for seed, zone in (("0", "UTC"), ("1", "UTC+5")):
        place = tmp_path / seed
        variables = {"PYTHONHASHSEED": seed, "TZ": zone}
        root = Path(__file__).parents[2]
        done = python("-c", script, str(place), path=root, isolate=False, **variables)
        assert done.returncode == 0, done.stderr
        contents.append({file.name: file.read_bytes() for file in (place / "out").iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 5


def test_the_output_is_made_and_an_earlier_export_goes(tmp_path):
    patches = made(write(tmp_path, TEXT), SERIES)
    output = tmp_path / "not" / "there"
    export.write(patches, output)
    (output / "README.md").write_text("kept")
    written = export.write(patches[1:2], output)
    assert written == [output / "series", output / "0002-twenty.patch"]
    assert sorted(p.name for p in output.iterdir()) == ["0002-twenty.patch", "README.md", "series"]
    export.write([], output)
    assert (output / "series").read_bytes() == b""
    assert sorted(p.name for p in output.iterdir()) == ["README.md", "series"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("0001-ten.patch", "From 0 Mon Sep 17 00:00:00 2001\nFrom: me <me@here>\n"),
        ("0002-twenty.patch", ""),
        ("series", "fix-things.patch -p1\n"),
        ("series", "../0001-ten.patch\n"),
        ("series", "\xff\n"),
    ],
)
def test_what_somebody_else_has_written_is_left_alone(tmp_path, name, content):
    patches = made(write(tmp_path / "tree", TEXT), SERIES)
    output = tmp_path / "patches"
    export.write(patches[:1], output)
    (output / name).write_text(content, "latin-1")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(TreeError, match=f"{name} was not written by `megatron-patch export`"):
        export.write(patches, output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_patches_that_no_export_has_listed_are_left_alone(tmp_path):
    patches = made(write(tmp_path / "tree", TEXT), SERIES)
    theirs = tmp_path / "patches" / "0007-something-else.patch"
    theirs.parent.mkdir()
    theirs.write_text("From: git format-patch\n")
    export.write(patches, theirs.parent)
    export.write([], theirs.parent)
    assert sorted(path.name for path in theirs.parent.iterdir()) == [theirs.name, "series"]


@pytest.mark.parametrize("name", ["0001-ten.patch", "series"])
def test_nothing_is_written_through_a_link(tmp_path, name):
    patches = made(write(tmp_path / "tree", TEXT), SERIES)
    output, victim = tmp_path / "patches", tmp_path / "victim"
    export.write(patches, output)
    (output / name).rename(victim)
    (output / name).symlink_to(victim)
    content = victim.read_bytes()
    with pytest.raises(TreeError, match="is in the way"):
        export.write([], output)
    assert victim.read_bytes() == content
