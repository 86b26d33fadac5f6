"""Make the ledger of known source: which digests each target has had, where and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from megatron_patch.ledger import FORMAT
from megatron_patch.source_tree import SourceTree
from megatron_patch.verdicts import find_definition

from .commits import Clone, Commit, natural
from .digests import History, State
from .git import CloneError

MAIN, DEV = "main", "dev"
#: Target -> digest -> ``releases`` or a branch -> names of releases, or short ids of commits.
Entries = dict[str, dict[str, dict[str, list[str]]]]


class Ledger(NamedTuple):
    """What ``megatron_patch/ledger/sources.json`` has.

    ``surveyed`` are branches and the full ids of their heads. Of each digest of a target,
    ``releases`` are those that have it, and a branch has the first commit and the last commit that
    have it; the last one is left out where it is the head. A branch other than main begins with
    the commit in which it left main.
    """

    surveyed: dict[str, str]
    targets: Entries
    format: int = FORMAT


def survey(
    clone: Clone,
    targets: Sequence[str],
    progress: Callable[[str], None] = lambda _: None,
    problem: Callable[[str], None] = lambda _: None,
    trees: Mapping[str, Path] = MappingProxyType({}),
) -> Ledger:
    """Walk the history of the branches and the releases of ``clone``.

    ``trees`` are releases that have no tag there, and where their source is unpacked.
    ``progress`` is told where the walk is, ``problem``, once, what source could not be read: it is
    left out. Raises ``CloneError``.
    """
    return _Survey(clone, targets, progress, problem, trees).run()


class _Survey:
    def __init__(
        self,
        clone: Clone,
        targets: Sequence[str],
        progress: Callable[[str], None],
        problem: Callable[[str], None],
        trees: Mapping[str, Path],
    ) -> None:
        self.clone = clone
        self.history = History(clone, targets)
        self.progress = progress
        self.problem = problem
        self.trees = trees
        self.told: set[str] = set()
        self.entries: Entries = {target: {} for target in sorted(targets)}

    def run(self) -> Ledger:
        heads = self._heads()
        main = self.clone.first_parent(MAIN)
        self._walk(MAIN, main)
        shared = {commit.id for commit in main}
        for branch in heads:
            if branch == MAIN:
                continue
            commits = self.clone.first_parent(branch)
            own = [commit for commit in commits if commit.id not in shared]
            if len(own) < len(commits):
                self._add(branch, self.history.at(commits[-len(own) - 1]))
            self._walk(branch, own)
        for release, commit in self.clone.releases().items():
            self.progress(f"release {release}")
            state = self.history.at(Commit(commit, None, ""))
            self._tell(state)
            for target in state.changed:
                self._release(release, target, state.digests[target])
        for release, folder in self.trees.items():
            tree = SourceTree.at(folder)
            for target in self.entries:
                found = find_definition(target, tree.read)
                if found is not None:
                    self._release(release, target, found.digest)
        return Ledger(heads, self.entries)

    def _release(self, release: str, target: str, digest: str | None) -> None:
        releases = self._entry(target, digest).setdefault("releases", [])
        if release not in releases:
            releases.append(release)
            releases.sort(key=natural)

    def _heads(self) -> dict[str, str]:
        lines = self.clone.release_branches()
        heads = {branch: self.clone.head(branch) for branch in (MAIN, DEV, *lines)}
        missing = "branch core_r..." if not lines else "tag of a release, core_v..."
        if not lines or not self.clone.releases():
            raise CloneError(
                f"{self.clone.path} has no {missing}: "
                f"git -C {self.clone.path} fetch --tags origin '{self.clone.refspec('*')}'"
            )
        return heads

    def _walk(self, branch: str, commits: Sequence[Commit]) -> None:
        for state in self.history.states(commits):
            self.progress(f"{branch} {state.commit.date}, {self.history.blobs_read} files read")
            self._tell(state)
            self._add(branch, state)

    def _add(self, branch: str, state: State) -> None:
        for target, before in state.changed.items():
            if before is not None and state.commit.parent is not None:
                self._entry(target, before)[branch][1:] = [state.commit.parent[:12]]
            after = state.digests[target]
            if after is not None:
                # A digest that comes back counts as there from its first commit on.
                del self._entry(target, after).setdefault(branch, [state.commit.short])[1:]

    def _entry(self, target: str, digest: str | None) -> dict[str, list[str]]:
        assert digest is not None
        return self.entries[target].setdefault(digest, {})

    def _tell(self, state: State) -> None:
        for said in state.problems:
            if said not in self.told:
                self.told.add(said)
                self.problem(f"{state.commit.short}: {said}; left out")
