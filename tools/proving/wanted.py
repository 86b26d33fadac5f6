"""Which source the ledger does not know, and on which commits it can be proved."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from megatron_patch.errors import RewriteError, TargetError
from megatron_patch.judge import trees_kept
from megatron_patch.ledger import sources_of
from megatron_patch.model import (
    Before,
    Judgement,
    Patch,
    Replace,
    Requires,
    Variant,
    is_known_by_digest,
)
from megatron_patch.rewrite import takes
from megatron_patch.unknown import why_not
from megatron_patch.verdicts import Finder, Reader, find_definition
from tools.history.commits import Clone, Commit
from tools.history.drift import Verdicts

#: Targets and their digests.
Digests = tuple[tuple[str, str], ...]


class Question(NamedTuple):
    """Source of one patch that is not known: is it what a variant is for, or needs it nothing?

    ``fitting`` are the variants whose edits fit, and the digests of the targets that have to be
    known for each: first the one with the fewest edits, among equals the newest. ``told`` are the
    digests of the targets that tell source which needs no edits.
    """

    patch: str
    fitting: tuple[tuple[str, Digests], ...]
    told: Digests


def question_at(patch: Patch, read: Reader) -> Question | None:
    """What has to be asked of source that is not known; ``None`` where it cannot be read."""
    find = functools.cache(functools.partial(find_definition, read=read))

    def digests(targets: Iterable[str]) -> Digests:
        found = ((target, find(target)) for target in dict.fromkeys(targets))
        return tuple((target, there.digest) for target, there in found if there is not None)

    try:
        fitting = [
            variant
            for variant in reversed(patch.variants)
            if fits(variant, read) and is_read(patch, variant, find)
        ]
        fitting.sort(key=lambda variant: len(variant.edits))
        return Question(
            patch.id,
            tuple((variant.name, digests(known_targets(variant))) for variant in fitting),
            digests(patch.told_by or (patch.target,)),
        )
    except (SyntaxError, TargetError, ValueError):
        return None


def is_read(patch: Patch, variant: Variant, find: Finder) -> bool:
    """Whether what the variant replaces as a whole, or relies on, is what it is known to.

    Other edits look for the code that they change, and the proofs show what comes of it. A
    replacement fits all that is called alike, and what a condition is for no proof has to show: a
    person has to have read it.
    """
    read = [edit.target for edit in variant.edits if isinstance(edit, (Replace, Requires))]
    there = {target: definition.digest for target in read if (definition := find(target))}
    return all(there.get(target) in digests_of(patch, variant, target) for target in read)


def digests_of(patch: Patch, variant: Variant, target: str) -> set[str | None]:
    """Those that the package knows of ``target``, where ``variant`` or one like it is needed.

    Variants are alike when they differ only in hooks that need nothing known.
    """
    core = [edit for edit in variant.edits if not getattr(edit, "independent", "")]
    alike = {
        other.name
        for other in patch.variants
        if [edit for edit in other.edits if not getattr(edit, "independent", "")] == core
    }
    sources = sources_of(patch._replace(sources=None))
    return {dict(source.digests).get(target) for source in sources if source.proved in alike}


def fits(variant: Variant, read: Reader) -> bool:
    """Whether all targets of the variant are there, and its edits can be made in them."""
    find = functools.cache(functools.partial(find_definition, read=read))
    if any(find(target) is None for target in known_targets(variant)):
        return False
    for edit in variant.edits:
        if isinstance(edit, Before) and edit.independent:
            there = find(edit.target)
            if there is None or not takes(there, edit):
                return False
    try:
        return why_not(variant, find) is None
    except (RewriteError, TargetError):
        return False


def known_targets(variant: Variant) -> tuple[str, ...]:
    """The targets of the variant whose source has to be known."""
    return tuple(dict.fromkeys(e.target for e in variant.edits if is_known_by_digest(e)))


def ask(
    clone: Clone,
    patches: Sequence[Patch],
    commits: Iterable[Commit],
    progress: Callable[[str], None] = lambda _: None,
) -> dict[Question, list[Commit]]:
    """The questions that the ledger leaves open, and the commits at which each comes up."""
    verdicts = Verdicts(clone, patches)
    # A verdict is kept as long as its source may come again: the same object is the same source.
    kept: dict[tuple[str, int], Question | None] = {}
    found: dict[Question, list[Commit]] = {}
    for number, commit in enumerate(commits, 1):
        progress(f"{number} commits, {len(found)} questions")
        for patch_id, verdict in verdicts.at(commit).verdicts.items():
            if verdict.judgement is not Judgement.DRIFTED:
                continue
            key = patch_id, id(verdict)
            if key not in kept:
                patch = next(patch for patch in patches if patch.id == patch_id)
                with trees_kept():
                    kept[key] = question_at(patch, clone.reader(commit.id))
            question = kept[key]
            if question is not None:
                found.setdefault(question, []).append(commit)
    return found


def cover(
    questions: Mapping[Question, Sequence[Commit]],
) -> list[tuple[Commit, tuple[Question, ...]]]:
    """Few commits at which all questions come up; each question at one of them.

    The commit with most of the questions that are left is the next, the newest among equals.
    """
    left = {question: set(commits) for question, commits in questions.items()}
    chosen: list[tuple[Commit, tuple[Question, ...]]] = []
    while left:
        counts: dict[Commit, list[Question]] = {}
        for question, commits in left.items():
            for commit in commits:
                counts.setdefault(commit, []).append(question)
        best = max(counts, key=lambda c: (len(counts[c]), c.date, c.id))
        chosen.append((best, tuple(counts[best])))
        for question in counts[best]:
            del left[question]
    return chosen
