"""What was proved, kept in a file of one JSON list a line, so that a run can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megatron_patch.ledger import sources_of
from megatron_patch.model import HAS_IT, NEEDS_NONE, Patch, Source

from .runs import Bench, Outcome
from .wanted import Digests, Question

UNKNOWN = "unknown"
Entry = Mapping[str, object]


class Answer(NamedTuple):
    """What ``question`` came to at ``commit``.

    ``proved`` is the name of a variant, ``HAS_IT``, ``NEEDS_NONE`` or ``UNKNOWN``; ``digests`` are
    those by which such source is recognised. ``unpatched`` and ``patched`` are the outcomes of the
    proofs; the latter is ``None`` where nothing was patched.
    """

    question: Question
    commit: str
    proved: str
    digests: Digests
    unpatched: str
    patched: str | None


def answer(
    bench: Bench,
    commit: str,
    questions: Sequence[Question],
    has_change: frozenset[str],
    series: Sequence[Patch],
) -> list[Answer]:
    """Answer ``questions``, one a patch, at one commit.

    ``has_change`` are the ids of the patches whose change upstream had made by that commit.
    ``series`` are all patches, with what is known of them so far: where the proofs of one fail with
    it alone, they are run beside the others.
    """
    unpatched = bench.run((question.patch for question in questions), "none")
    found: list[Answer] = []
    known = {patch.id: list(map(entry_of, sources_of(patch))) for patch in series}
    needy: dict[str, Question] = {}
    for question in questions:
        outcome = unpatched[question.patch]
        if outcome in (Outcome.PASSES, Outcome.LACKS):
            proved = HAS_IT if question.patch in has_change else NEEDS_NONE
            found.append(Answer(question, commit, proved, question.told, outcome.value, None))
        elif outcome is Outcome.FAILS and question.fitting:
            needy[question.patch] = question
        else:
            found.append(Answer(question, commit, UNKNOWN, (), outcome.value, None))
    # Where the edits of several variants fit, they are tried one after the other.
    for number in range(max((len(question.fitting) for question in needy.values()), default=0)):
        tried = {p: q.fitting[number] for p, q in needy.items() if number < len(q.fitting)}
        if not tried:
            break
        bench.know({patch: [_entry(*variant)] for patch, variant in tried.items()})
        for patch, alone in _patched(bench, list(tried)).items():
            question, (name, digests) = needy[patch], tried[patch]
            outcome = alone
            if alone is not Outcome.PASSES and any(
                known[other] for other in known if other != patch
            ):
                outcome = _beside_others(bench, patch, {**known, patch: [_entry(name, digests)]})
            is_last = number == len(question.fitting) - 1
            if outcome is Outcome.PASSES or is_last:
                proved = name if outcome is Outcome.PASSES else UNKNOWN
                fails = Outcome.FAILS.value
                found.append(Answer(question, commit, proved, digests, fails, outcome.value))
                del needy[patch]
    return [_without(bench, made, known) for made in found]


def _patched(bench: Bench, patches: list[str]) -> dict[str, Outcome]:
    """The outcomes with the patches: all together, and each alone that does not pass then.

    A patch that is not right for this source may break the proofs of the others.
    """
    found = bench.run(patches, ",".join(patches))
    for patch in patches if len(patches) > 1 else ():
        if found[patch] is not Outcome.PASSES:
            found[patch] = bench.run([patch], patch)[patch]
    return found


def _beside_others(bench: Bench, patch: str, known: Mapping[str, Sequence[Entry]]) -> Outcome:
    """The outcome with all patches that are known there, if it fails with all but this one.

    Another defect of the source can break the proofs of this patch. With that defect patched, they
    have to fail for want of this patch alone, and to pass with it: the two runs differ in nothing
    else.
    """
    bench.know(known)
    found = bench.run([patch], "")[patch]
    if found is Outcome.PASSES and bench.run([patch], f"-{patch}")[patch] is not Outcome.FAILS:
        return Outcome.FAILS
    return found


def _without(bench: Bench, made: Answer, known: Mapping[str, Sequence[Entry]]) -> Answer:
    """``made``, or ``NEEDS_NONE`` if the proofs fail only for a defect that another patch mends."""
    patch = made.question.patch
    others = {other: entries for other, entries in known.items() if other != patch}
    if made.proved != UNKNOWN or made.unpatched != Outcome.FAILS.value or not any(others.values()):
        return made
    bench.know(others)
    if bench.run([patch], f"-{patch}")[patch] is not Outcome.PASSES:
        return made
    return made._replace(proved=NEEDS_NONE, digests=made.question.told, patched=None)


def entry_of(source: Source) -> Entry:
    """The entry of the ledger that says ``source``."""
    return {**source._asdict(), "digests": dict(source.digests)}


def _entry(variant: str, digests: Digests) -> Entry:
    return {
        "proved": variant,
        "digests": dict(digests),
        "releases": "a commit that is being proved",
        "commit": "",
    }


class Journal:
    """The answers so far, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: list[Answer] = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                self.answers += [_answer(*item) for item in json.loads(line)]

    @property
    def unknown(self) -> set[Question]:
        """The questions whose answer is ``UNKNOWN``."""
        return {answer.question for answer in self.answers if answer.proved == UNKNOWN}

    def add(self, answers: Sequence[Answer]) -> None:
        """Append the answers of one commit to the file."""
        self.answers += answers
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(answers) + "\n")


def _answer(question: Any, commit: str, proved: str, digests: Any, *outcomes: Any) -> Answer:
    patch, fitting, told = question
    asked = Question(patch, tuple((name, _pairs(d)) for name, d in fitting), _pairs(told))
    return Answer(asked, commit, proved, _pairs(digests), *outcomes)


def _pairs(digests: Any) -> Digests:
    return tuple((str(target), str(digest)) for target, digest in digests)
