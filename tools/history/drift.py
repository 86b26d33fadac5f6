"""The verdicts on the patches at each commit of a branch that touches their targets."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from megatron_patch.judge import judge, trees_kept
from megatron_patch.model import Patch
from megatron_patch.verdicts import Judgement, Reader, Verdict

from .commits import Clone, Commit
from .digests import History


class Missed(NamedTuple):
    """A target of a drifted patch, and the digest that was found, ``None`` without one."""

    target: str
    digest: str | None


class Judged(NamedTuple):
    """The judgements of the patches at one commit."""

    commit: Commit
    judgements: dict[str, Judgement]

    @property
    def drifted(self) -> tuple[str, ...]:
        """The ids of the patches that are drifted."""
        drifted = Verdict.DRIFTED
        return tuple(id for id, found in self.judgements.items() if found.verdict is drifted)


@dataclass
class Drift:
    """The commits at which one patch is drifted, oldest first.

    ``needed`` counts the commits at which it is drifted or would be applied. ``missed`` are the
    targets whose source is not known, with the number of commits; ``others`` are reasons of those
    judgements that name no target.
    """

    id: str
    needed: int = 0
    commits: list[Commit] = field(default_factory=list)
    missed: Counter[Missed] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)


Answer = TypeVar("Answer")


class BySource(Generic[Answer]):
    """Answers found out from the source of commits, each once for the same source.

    Source is the same if all modules that were read for the answer are the same.
    """

    def __init__(self, clone: Clone) -> None:
        self.clone = clone
        self.number = 0  #: how many answers had to be found out
        # By name, the newest first: the blobs that were asked for, and the answer.
        self._known: dict[str, list[tuple[dict[str, str | None], Answer]]] = {}

    def of(self, name: str, commit: Commit, find_out: Callable[[Reader], Answer]) -> Answer:
        """What ``find_out`` makes of the source of ``commit``; ``name`` is that of the question."""
        known = self._known.setdefault(name, [])
        for index, (asked, answer) in enumerate(known):
            if all(self._blob(commit, module) == blob for module, blob in asked.items()):
                known.insert(0, known.pop(index))
                return answer
        asked = {}
        read = self.clone.reader(commit.id)

        def ask(module: str) -> str | None:
            asked[module] = self._blob(commit, module)
            return read(module)

        answer = find_out(ask)
        known.insert(0, (asked, answer))
        self.number += 1
        return answer

    def _blob(self, commit: Commit, module: str) -> str | None:
        return self.clone.module_blob(commit.id, module)


class Judgements:
    """The judgements of patches on commits of a clone, each judged once for the same source."""

    def __init__(self, clone: Clone, patches: Sequence[Patch]) -> None:
        self.patches = patches
        self._known = BySource[Judgement](clone)

    @property
    def judged(self) -> int:
        """How often the judge has been asked."""
        return self._known.number

    def at(self, commit: Commit) -> Judged:
        """The judgements of the patches at ``commit``."""
        with trees_kept():
            return Judged(
                commit,
                {
                    patch.id: self._known.of(patch.id, commit, functools.partial(judge, patch))
                    for patch in self.patches
                },
            )


def touching(
    clone: Clone, branch: str, targets: Sequence[str], since: str | None = None
) -> list[Commit]:
    """The first-parent commits of ``branch`` that touch the files of the targets, oldest first.

    Raises ``CloneError``.
    """
    commits = clone.first_parent(branch, since)
    changes = clone.changes(commits, History(clone, targets).paths)
    return [commit for commit in commits if commit.id in changes]


def judged(
    clone: Clone,
    commits: Sequence[Commit],
    patches: Sequence[Patch],
    progress: Callable[[str], None] = lambda _: None,
) -> list[Judged]:
    """The judgements of ``patches`` at each of ``commits``. Raises ``CloneError``."""
    judgements = Judgements(clone, patches)
    found = []
    for number, commit in enumerate(commits, 1):
        progress(f"{number} of {len(commits)} commits, {judgements.judged} verdicts")
        found.append(judgements.at(commit))
    return found


def drifts(rows: Iterable[Judged], patches: Iterable[Patch]) -> list[Drift]:
    """For each patch, in order, where it is drifted and why."""
    found = {patch.id: Drift(patch.id) for patch in patches}
    for row in rows:
        for id, judgement in row.judgements.items():
            drift = found[id]
            drift.needed += judgement.verdict in (Verdict.DRIFTED, Verdict.APPLICABLE)
            if judgement.verdict is not Verdict.DRIFTED:
                continue
            drift.commits.append(row.commit)
            missed = {Missed(miss.target, miss.found) for miss in judgement.misses}
            drift.missed.update(missed)
            if not missed:
                drift.others[judgement.reason] += 1
    return list(found.values())
