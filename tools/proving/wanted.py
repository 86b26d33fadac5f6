"""Which source the ledger does not know, and on which commits it can be proved."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Optional

from megatron_patch.edits import Edit, Replace, Requires, is_known_by_digest
from megatron_patch.errors import TargetError
from megatron_patch.judge import trees_kept
from megatron_patch.ledger import sources_of
from megatron_patch.model import Patch, Variant
from megatron_patch.unknown import independent_hooks, is_taken, why_not
from megatron_patch.verdicts import Finder, Reader, Verdict, find_definition
from tools.history.commits import Clone, Commit
from tools.history.drift import BySource, Judgements

#: Targets and their digests.
Digests = tuple[tuple[str, str], ...]


class Question(NamedTuple):
    """Source of one patch that is not known: is a variant right for it, or does it need none?

    ``fitting`` are the variants whose edits fit, and the digests of the targets that have to be
    known for each: first the one with the fewest edits, among equals the newest. ``told`` are the
    digests of the targets by which source that needs no edits is recognised.
    """

    patch: str
    fitting: tuple[tuple[str, Digests], ...]
    told: Digests


def question_at(patch: Patch, read: Reader, reviewed: Collection[str] = ()) -> Question | None:
    """What has to be asked of source that is not known; ``None`` where it cannot be read.

    ``reviewed`` are digests that a person has read, beside those that the package knows.
    """
    find = functools.cache(functools.partial(find_definition, read=read))

    def digests(targets: Iterable[str]) -> Digests:
        found = ((target, find(target)) for target in dict.fromkeys(targets))
        return tuple((target, there.digest) for target, there in found if there is not None)

    try:
        fitting = [
            variant
            for variant in reversed(patch.variants)
            if fits(variant, find) and is_read(patch, variant, find, reviewed)
        ]
        fitting.sort(key=lambda variant: len(variant.edits))
        return Question(
            patch.id,
            tuple((variant.name, digests(known_targets(variant))) for variant in fitting),
            digests(patch.told_by or (patch.target,)),
        )
    except (SyntaxError, TargetError, ValueError):
        return None


def is_read(patch: Patch, variant: Variant, find: Finder, reviewed: Collection[str] = ()) -> bool:
    """Whether the code that the variant replaces as a whole, or relies on, is known or was read.

    Other edits look for the code that they change, and the proofs show whether they are right. A
    `Replace` fits any method of that name, and no proof need show what a `Requires` is for: a
    person has to have read that code.
    """
    read = [edit.target for edit in variant.edits if isinstance(edit, (Replace, Requires))]
    there = {target: definition.digest for target in read if (definition := find(target))}
    return all(
        there.get(target) in (*reviewed, *digests_of(patch, variant, target)) for target in read
    )


def digests_of(patch: Patch, variant: Variant, target: str) -> set[str | None]:
    """The known digests of ``target`` in source that needs ``variant`` or one like it."""
    alike = {other.name for other in patch.variants if are_alike(variant, other)}
    sources = sources_of(patch._replace(sources=None))
    return {dict(source.digests).get(target) for source in sources if source.proved in alike}


def are_alike(one: Variant, other: Variant) -> bool:
    """Whether two variants differ at most in hooks that need nothing known."""

    def core(variant: Variant) -> list[Edit]:
        hooks = independent_hooks(variant)
        return [edit for edit in variant.edits if edit not in hooks]

    return core(one) == core(other)


def fits(variant: Variant, find: Finder) -> bool:
    """Whether all targets of the variant are there, and its edits can be made in them."""
    there = all(find(target) is not None for target in known_targets(variant))
    if not there or not all(is_taken(hook, find) for hook in independent_hooks(variant)):
        return False
    try:
        return why_not(variant, find) is None
    except TargetError:
        return False


def known_targets(variant: Variant) -> tuple[str, ...]:
    """The targets of the variant whose source has to be known."""
    return tuple(dict.fromkeys(e.target for e in variant.edits if is_known_by_digest(e)))


def ask(
    clone: Clone,
    patches: Sequence[Patch],
    commits: Iterable[Commit],
    reviewed: Collection[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> dict[Question, list[Commit]]:
    """The questions that the ledger leaves open, and the commits at which each comes up."""
    judgements = Judgements(clone, patches)
    by_id = {patch.id: patch for patch in patches}
    # A question may be about modules that the judge has not read: so it is cached by itself.
    known = BySource[Optional[Question]](clone)
    found: dict[Question, list[Commit]] = {}
    for number, commit in enumerate(commits, 1):
        progress(f"{number} commits, {len(found)} questions")
        for patch_id, judgement in judgements.at(commit).judgements.items():
            if judgement.verdict is not Verdict.DRIFTED:
                continue
            with trees_kept():
                question = known.of(
                    patch_id,
                    commit,
                    functools.partial(question_at, by_id[patch_id], reviewed=reviewed),
                )
            if question is not None:
                found.setdefault(question, []).append(commit)
    return found


def cover(
    questions: Mapping[Question, Sequence[Commit]],
) -> list[tuple[Commit, tuple[Question, ...]]]:
    """Few commits at which all questions come up; each question at one of them.

    Next comes the commit whose open questions come up at the most commits altogether; among equals
    the newest. So a run that is stopped has answered what matters to most people.
    """
    left = {question: set(commits) for question, commits in questions.items()}
    chosen: list[tuple[Commit, tuple[Question, ...]]] = []
    while left:
        counts: dict[Commit, list[Question]] = {}
        for question, commits in left.items():
            for commit in commits:
                counts.setdefault(commit, []).append(question)
        weights = {c: sum(len(questions[q]) for q in asked) for c, asked in counts.items()}
        best = max(counts, key=lambda c: (weights[c], c.date, c.id))
        chosen.append((best, tuple(counts[best])))
        for question in counts[best]:
            del left[question]
    return chosen
