"""Edits in a tree itself: written as a whole or not at all, and taken back byte for byte."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from pathlib import Path

import pytest

from megatron_patch import in_place
from megatron_patch.edits import Substitute
from megatron_patch.errors import TreeError
from megatron_patch.inspection import inspect
from megatron_patch.source_edits import source_patches
from megatron_patch.source_tree import SourceTree
from megatron_patch.verdicts import Verdict

from .sample import digest_in, make_patch
from .source_trees import MODULE, PATH, git, made, repository, write

TEXT = """\
class Thing:
    def one(self):
        return 1

    def two(self):
        return 2
"""
OTHER = "megatron.core.other"
OTHER_PATH = "megatron/core/other.py"
SERIES = (
    make_patch(
        Substitute(f"{MODULE}:Thing.one", "1", "10"),
        Substitute(f"{OTHER}:Thing.one", "1", "10"),
        known=digest_in(TEXT),
        id="ten",
    ),
    make_patch(Substitute(f"{MODULE}:Thing.two", "2", "20"), known=digest_in(TEXT), id="twenty"),
    make_patch(Substitute(f"{OTHER}:Thing.two", "2", "20"), known=digest_in(TEXT), id="other"),
)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def tree(tmp_path):  # type: ignore[no-untyped-def]
    """A tree with the two modules, the second with Windows' line ends and executable."""
    write(tmp_path, TEXT.replace("\n", "\r\n").encode(), OTHER)
    (tmp_path / OTHER_PATH).chmod(0o755)
    found = write(tmp_path, TEXT)
    (tmp_path / PATH).chmod(0o640)
    return found


def snapshot(tree) -> dict[str, tuple[bytes, int]]:  # type: ignore[no-untyped-def]
    """Each file with its permissions; git's own are left out."""
    return {
        str(path.relative_to(tree.root)): (path.read_bytes(), path.stat().st_mode)
        for path in tree.root.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def apply(tree, *ids: str) -> list[Path]:  # type: ignore[no-untyped-def]
    return in_place.apply(tree, made(tree, SERIES, ids or None))


def texts(tree) -> list[str]:  # type: ignore[no-untyped-def]
    return [(tree.root / path).read_bytes().decode() for path in (PATH, OTHER_PATH)]


def test_apply_writes_the_edited_files_and_keeps_their_permissions(tree):
    before = snapshot(tree)
    assert apply(tree) == [tree.root / PATH, tree.root / OTHER_PATH]
    new = TEXT.replace("1", "10").replace("2", "20")
    assert texts(tree) == [new, new.replace("\n", "\r\n")]
    after = snapshot(tree)
    assert (after[PATH][1] & 0o777, after[OTHER_PATH][1] & 0o777) == (0o640, 0o755)
    state = str(in_place.STATE)
    assert {name for name in after if not name.startswith(state)} == before.keys()


def test_a_file_is_exchanged_not_written_over(tree):
    # Package managers link the files of several environments to one: the others stay as they are.
    os.link(tree.root / PATH, tree.root / "elsewhere")
    apply(tree)
    assert (tree.root / "elsewhere").read_text() == TEXT
    assert (tree.root / PATH).read_text() != TEXT


def test_afterwards_check_says_upstreamed_and_there_is_nothing_to_do(tree):
    apply(tree)
    findings = [inspect(patch, tree, series=SERIES) for patch in SERIES]
    assert [finding.verdict for finding in findings] == ["upstreamed"] * 3
    patches, skipped = source_patches(tree, SERIES, [patch.id for patch in SERIES])
    assert patches == []
    assert [entry.verdict for entry in skipped] == [Verdict.UPSTREAMED] * 3
    before = snapshot(tree)
    assert in_place.apply(tree, patches) == []
    assert snapshot(tree) == before


def test_nothing_to_apply_leaves_no_trace(tree):
    before = snapshot(tree)
    assert in_place.apply(tree, []) == []
    assert snapshot(tree) == before


def test_revert_puts_back_what_was_there(tree):
    before = snapshot(tree)
    apply(tree)
    assert in_place.revert(tree) == [tree.root / PATH, tree.root / OTHER_PATH]
    assert snapshot(tree) == before
    assert not (tree.root / in_place.STATE).exists()
    with pytest.raises(TreeError, match="nothing was applied there"):
        in_place.revert(tree)
    apply(tree)  # and all over again
    in_place.revert(tree)
    assert snapshot(tree) == before


@pytest.mark.parametrize(
    "order", [*itertools.permutations(["ten", "twenty", "other"])], ids=" ".join
)
def test_patches_are_applied_one_by_one_and_reverted_together(tree, order):
    before = snapshot(tree)
    for id in order:
        assert apply(tree, id)
        assert inspect(*(p for p in SERIES if p.id == id), tree, series=SERIES).verdict == (
            "upstreamed"
        )
    assert texts(tree)[0] == TEXT.replace("1", "10").replace("2", "20")
    in_place.revert(tree)
    assert snapshot(tree) == before


@contextlib.contextmanager
def failing(monkeypatch, name: str, call: int):  # type: ignore[no-untyped-def]
    """A function of ``os`` fails for want of room, at this call alone."""
    real, calls = getattr(os, name), itertools.count(1)

    def function(*arguments):  # type: ignore[no-untyped-def]
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "no room")
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, name, function)
        yield


# Three files are written: the two modules, and the record of them.
@pytest.mark.parametrize("name", ["replace", "fsync"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_write_that_fails_leaves_all_as_it_was(tree, monkeypatch, name, call):
    before = snapshot(tree)
    with failing(monkeypatch, name, call), pytest.raises(OSError, match="no room"):
        apply(tree)
    assert snapshot(tree) == before
    assert not (tree.root / in_place.STATE).exists()
    apply(tree)
    in_place.revert(tree)
    assert snapshot(tree) == before


@pytest.mark.parametrize("call", [1, 2])
def test_a_write_that_fails_leaves_what_was_applied_before(tree, monkeypatch, call):
    before = snapshot(tree)
    apply(tree, "twenty")
    applied = texts(tree)
    with failing(monkeypatch, "replace", call), pytest.raises(OSError, match="no room"):
        apply(tree, "ten", "other")
    assert texts(tree) == applied
    in_place.revert(tree)
    assert snapshot(tree) == before


@pytest.mark.parametrize("call", [1, 2])
def test_a_revert_that_fails_can_be_done_again(tree, monkeypatch, call):
    before = snapshot(tree)
    apply(tree)
    applied = snapshot(tree)
    with failing(monkeypatch, "replace", call), pytest.raises(OSError, match="no room"):
        in_place.revert(tree)
    assert snapshot(tree) == applied
    in_place.revert(tree)
    assert snapshot(tree) == before


@pytest.mark.parametrize("staged", [False, True])
def test_changes_that_are_not_committed_are_refused(tree, staged):
    repository(tree.root)
    (tree.root / PATH).write_text(TEXT + "# mine\n")
    if staged:
        git("add", PATH, cwd=tree.root)
    before = snapshot(tree)
    with pytest.raises(TreeError) as caught:
        apply(tree)
    assert ("M  " if staged else " M ") + PATH in str(caught.value)
    assert "not committed" in str(caught.value)
    assert snapshot(tree) == before
    git("commit", "-q", "--all", "-m", "mine", cwd=tree.root)
    apply(tree)


def test_changes_to_other_files_do_not_matter(tree):
    repository(tree.root)
    (tree.root / "megatron/core/__init__.py").write_text("# mine\n")
    (tree.root / "new.py").touch()
    apply(tree)


def test_git_sees_the_edits_and_nothing_else(tree):
    root = tree.root
    repository(root)
    apply(tree, "twenty")
    assert git("status", "--porcelain", cwd=root) == f" M {PATH}\n"
    apply(tree, "ten")  # what the first one changed is no reason to refuse the second
    in_place.revert(tree)
    assert git("status", "--porcelain", cwd=root) == ""


def test_the_tree_may_be_a_part_of_a_repository(tree):
    outer = tree.root / "outer"
    shutil.copytree(tree.root / "megatron", outer / "vendored" / "megatron")
    inner = write(outer / "vendored", TEXT)
    repository(outer)
    (outer / "vendored" / PATH).write_text(TEXT + "# mine\n")
    with pytest.raises(TreeError, match=f"vendored/{PATH}"):
        apply(inner)


def test_without_git_there_is_nothing_to_ask(tree, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert apply(tree)


def test_what_was_changed_after_apply_is_neither_edited_nor_reverted(tree):
    apply(tree, "twenty")
    (tree.root / PATH).write_text((tree.root / PATH).read_text() + "# mine\n")
    before = snapshot(tree)
    for again in (lambda: apply(tree, "ten"), lambda: in_place.revert(tree)):
        with pytest.raises(TreeError, match=f"{PATH} was changed after `megatron-patch apply`"):
            again()
        assert snapshot(tree) == before


@pytest.mark.parametrize("linked", [PATH, "megatron/core"])
def test_nothing_is_written_through_a_symbolic_link(tree, tmp_path_factory, linked):
    outside = tmp_path_factory.mktemp("outside") / "there"
    (tree.root / linked).rename(outside)
    (tree.root / linked).symlink_to(outside)
    before = snapshot(tree)
    with pytest.raises(TreeError, match="is reached through a symbolic link"):
        apply(tree)
    assert snapshot(tree) == before
    assert (tree.root / PATH).read_text() == TEXT


def test_the_tree_may_be_named_through_a_link_or_from_where_one_is(
    tree, tmp_path_factory, monkeypatch
):
    before = snapshot(tree)
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(tree.root)
    monkeypatch.chdir(tree.root)
    for directory in (link, Path("."), Path("megatron")):
        apply(SourceTree.at(directory))
        in_place.revert(SourceTree.at(directory))
        assert snapshot(tree) == before


def test_read_only_files_stay_read_only(tree):
    (tree.root / PATH).chmod(0o444)
    before = snapshot(tree)
    apply(tree)
    assert (tree.root / PATH).stat().st_mode & 0o777 == 0o444
    in_place.revert(tree)
    assert snapshot(tree) == before


def test_a_released_tree_in_a_repository_that_git_refuses_to_read(tree, monkeypatch):
    repository(tree.root)
    (tree.root / ".git" / "HEAD").write_text("nonsense\n")
    before = snapshot(tree)
    with pytest.raises(TreeError, match=r"cannot be said: fatal: .*\n.*--force"):
        apply(tree)
    assert snapshot(tree) == before
    patches = made(tree, SERIES)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", "")
        with pytest.raises(TreeError, match="git is not installed"):
            in_place.apply(tree, patches)
    assert in_place.apply(tree, patches, force=True)


def test_nothing_that_the_repository_names_is_run(tree):
    repository(tree.root)
    git("config", "core.fsmonitor", f"touch {tree.root / 'ran'}; false", cwd=tree.root)
    apply(tree)
    assert not (tree.root / "ran").exists()


@pytest.mark.parametrize("how", ["git checkout .", "put back", "gone"])
def test_what_somebody_else_has_put_back_is_not_applied_any_more(tree, how):
    repository(tree.root)
    before = snapshot(tree)
    apply(tree)
    if how == "git checkout .":
        git("checkout", ".", cwd=tree.root)
    elif how == "put back":
        (tree.root / PATH).write_bytes(before[PATH][0])
    else:
        (tree.root / PATH).unlink()
        assert in_place.revert(tree) == [tree.root / OTHER_PATH]
        assert not (tree.root / in_place.STATE).exists()
        return
    assert apply(tree, "twenty") == [tree.root / PATH]
    assert texts(tree)[0] == TEXT.replace("2", "20")
    in_place.revert(tree)
    assert texts(tree) == [before[path][0].decode() for path in (PATH, OTHER_PATH)]


def test_there_may_be_nothing_left_to_revert(tree):
    before = snapshot(tree)
    apply(tree)
    for path in (PATH, OTHER_PATH):
        (tree.root / path).write_bytes(before[path][0])
    assert in_place.revert(tree) == []
    assert snapshot(tree) == before


def test_another_branch_is_another_tree(tree):
    repository(tree.root)
    git("checkout", "-q", "-b", "other", cwd=tree.root)
    new = TEXT + "\n\nMORE = 1\n"
    (tree.root / PATH).write_text(new)
    git("commit", "-q", "--all", "-m", "more", cwd=tree.root)
    git("checkout", "-q", "-", cwd=tree.root)
    apply(tree, "twenty")
    git("checkout", "-q", "-f", "other", cwd=tree.root)
    apply(tree, "twenty")
    in_place.revert(tree)
    assert (tree.root / PATH).read_text() == new


def test_another_release_is_another_tree(tree):
    info = tree.root / "megatron/core/package_info.py"
    info.write_text("MAJOR, MINOR, PATCH = 0, 16, 1\nMAJOR = 0\nMINOR = 16\nPATCH = 1\n")
    apply(tree, "twenty")
    info.write_text("MAJOR = 0\nMINOR = 17\nPATCH = 0\n")
    new = TEXT + "\n\nMORE = 1\n"
    (tree.root / PATH).write_text(new)
    apply(tree, "twenty")
    in_place.revert(tree)
    assert (tree.root / PATH).read_text() == new


def test_owner_and_extended_attributes_are_kept(tree):
    file = tree.root / PATH
    with contextlib.suppress(OSError):  # some file systems have none
        os.setxattr(file, "user.note", b"mine")
    names = os.listxattr(file)
    if os.geteuid() == 0:
        os.chown(file, 12345, 54321)
    owner = (file.stat().st_uid, file.stat().st_gid)
    times = file.stat().st_mtime_ns
    for change in (lambda: apply(tree), lambda: in_place.revert(tree)):
        change()
        assert (file.stat().st_uid, file.stat().st_gid) == owner
        assert os.listxattr(file) == names
        assert file.stat().st_mtime_ns > times  # else Python may take what it has compiled


def test_who_is_not_root_gives_nothing_away(tree, monkeypatch):
    """Such as a member of a group that may write in the folder of somebody else."""
    real = Path.stat

    def stat(path, **named):  # type: ignore[no-untyped-def]
        found = real(path, **named)
        if not str(path).endswith("megatron/core"):
            return found
        return os.stat_result([*found[:4], 12345, 54321, *found[6:]])

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "chown", lambda *_: pytest.fail("gives it away"))
    patches = made(tree, SERIES)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", stat)
        assert (tree.root / "megatron/core").stat().st_uid == 12345
        in_place.apply(tree, patches)
    in_place.revert(tree)
