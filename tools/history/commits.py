"""The first-parent history of a clone of Megatron-LM, and the source at each commit of it."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import NamedTuple

from megatron_patch.verdicts import Reader

from .git import CloneError, Git

FILES = ("100644", "100755")  # not symbolic links, not submodules
RELEASE = re.compile(r"core_v(\d+\.\d+\.\d+)")
RELEASE_BRANCH = re.compile(r"core_(dev_)?r\d")
PACKAGE = "megatron"


class Commit(NamedTuple):
    """A commit, its first parent, and the day on which it was committed (``YYYY-MM-DD``, UTC)."""

    id: str
    parent: str | None
    date: str

    @property
    def short(self) -> str:
        """12 hexadecimal digits."""
        return self.id[:12]


class Clone(Git):
    """A clone of Megatron-LM: branches, commits and source text. See :class:`Git` for errors."""

    def branches(self) -> dict[str, str]:
        """The names of upstream's branches, and the full ids of their heads.

        In a bare clone these are its own branches, otherwise those of ``origin``, because a branch
        that is checked out may be old, or the user's. A branch that is not there is looked for
        in the other place.
        """
        found: dict[str, str] = {}
        for place in self.places():  # the last one wins
            found.update(self._refs(place))
        found.pop("HEAD", None)
        return dict(sorted(found.items(), key=lambda item: natural(item[0])))

    def release_branches(self) -> tuple[str, ...]:
        """The branches that releases are made from: ``core_r...``, for dev ``core_dev_r...``."""
        return tuple(name for name in self.branches() if RELEASE_BRANCH.match(name))

    def releases(self) -> dict[str, str]:
        """The final releases that have a tag, oldest first, and the full ids of their commits."""
        tags = self._refs("refs/tags/")
        found = {m[1]: tag for name, tag in tags.items() if (m := RELEASE.fullmatch(name))}
        return dict(sorted(found.items(), key=lambda item: natural(item[0])))

    def head(self, branch: str) -> str:
        """The full id of the newest commit of ``branch``. Raises ``CloneError`` without it."""
        found = self.branches().get(branch)
        if found is None:
            raise CloneError(
                f"{self.path} has no branch {branch}: "
                f"git -C {self.path} fetch origin {self.refspec(branch)}"
            )
        return found

    def first_parent(self, branch: str, since: str | None = None) -> list[Commit]:
        """The first-parent history of ``branch``, oldest commit first.

        With ``since`` (``YYYY-MM-DD``) it begins with the first one that was committed on that day
        or later. Raises ``CloneError`` when there is no such branch.
        """
        printed = self.run(
            "rev-list", "--first-parent", "--parents", "--timestamp", self.head(branch), "--"
        )
        commits = []
        for line in reversed(printed.splitlines()):
            seconds, commit, *parents = line.split()
            date = datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%d")
            commits.append(Commit(commit, parents[0] if parents else None, date))
        if since is not None:
            places = (i for i, commit in enumerate(commits) if commit.date >= since)
            commits = commits[next(places, len(commits)) :]
        return commits

    def changes(
        self, commits: Sequence[Commit], paths: Iterable[str]
    ) -> dict[str, dict[str, str | None]]:
        """Which of the files ``paths`` each commit changes, compared with its first parent.

        Commit id -> path -> id of the blob that is there then, ``None`` if there is no file.
        Commits that change none of the files are left out.
        """
        pairs = [f"{commit.id} {commit.parent or ''}".rstrip() for commit in commits]
        printed = self._trees(
            *("diff-tree", "--stdin", "-r", "--root", "--raw", "--no-renames", "--no-abbrev", "--"),
            *paths,
            lines=pairs,
        )
        found: dict[str, dict[str, str | None]] = {}
        commit = ""
        for line in printed.splitlines():
            if not line.startswith(":"):
                commit = line.split()[0]
                continue
            entry, path = line.split("\t")
            _, mode, _, blob, _ = entry.split()
            found.setdefault(commit, {})[path] = blob if mode in FILES else None
        return found

    def blobs_at(self, commit: str, paths: Iterable[str]) -> dict[str, str]:
        """The ids of the blobs of those of ``paths`` that are files at ``commit``."""
        tree = self.tree(commit)
        return {path: tree[path] for path in paths if path in tree}

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a clone lives as long as the tool
    def tree(self, commit: str) -> Mapping[str, str]:
        """Path -> id of the blob, for all files in ``megatron`` at ``commit``."""
        found = {}
        printed = self._trees("ls-tree", "-r", "-z", commit, "--", PACKAGE)
        for line in filter(None, printed.split("\0")):
            entry, _, path = line.partition("\t")
            mode, _, blob = entry.split()
            if mode in FILES:
                found[path] = blob
        return found

    def read(self, commit: str, path: str) -> str | None:
        """The source text of the file ``path`` at ``commit``, ``None`` if there is no such file.

        Raises ``SyntaxError`` or ``UnicodeError`` when the file is no Python text.
        """
        blob = self.tree(commit).get(path)
        return None if blob is None else self.text(blob)

    def text(self, blob: str) -> str:
        """The content of a blob as source text. Raises as :meth:`read`."""
        return importlib.util.decode_source(self.blob(blob))

    def module_blob(self, commit: str, module: str) -> str | None:
        """The id of the blob that is the source of ``module``, ``None`` if there is none."""
        tree = self.tree(commit)
        return next((tree[path] for path in paths_of(module) if path in tree), None)

    def reader(self, commit: str) -> Reader:
        """Gives the source text of a module at ``commit``; for :func:`megatron_patch.judge.judge`.

        ``None`` for a module that does not exist there. Raises as :meth:`read`.
        """

        def read(module: str) -> str | None:
            blob = self.module_blob(commit, module)
            return None if blob is None else self.text(blob)

        return read

    def archive(self, commit: str) -> bytes:
        """Megatron-Core at ``commit``, as a tar file."""
        return self.run_raw("archive", commit, "--", f"{PACKAGE}/core")

    def is_ancestor(self, commit: str, other: str) -> bool:
        """Whether ``other`` comes after ``commit``, or is it."""
        return self.run("merge-base", commit, other).strip() == commit

    def _trees(self, *arguments: str, lines: Iterable[str] = ()) -> str:
        try:
            return self.run(*arguments, lines=lines)
        except CloneError as error:
            raise CloneError(self.incomplete(str(error))) from error

    def _refs(self, place: str) -> dict[str, str]:
        """The refs below ``place``, and the full ids of their commits."""
        printed = self.run(
            "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", place
        )
        # The last one: an annotated tag is an object of its own.
        return {
            line.split()[0].removeprefix(place): line.split()[-1] for line in printed.splitlines()
        }


def paths_of(module: str) -> tuple[str, str]:
    """The files that may be the source of ``module``: the first of them that exists is."""
    base = module.replace(".", "/")
    return f"{base}.py", f"{base}/__init__.py"


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts 0.9.0 before 0.10.0."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)
