"""What was proved, kept in a file of one JSON object a line: a run that ends can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from megatron_patch.model import HAS_IT, NEEDS_NONE

from .runs import Bench, Outcome
from .wanted import Question

UNKNOWN = "unknown"


class Answer(NamedTuple):
    """What ``question`` came to at ``commit``: a variant's name, has it, needs none, or unknown.

    ``unpatched`` and ``patched`` are the outcomes of its proofs; the latter is ``None`` where
    nothing had to be patched, or could be.
    """

    question: Question
    commit: str
    proved: str
    unpatched: str
    patched: str | None


def answer(
    bench: Bench,
    commit: str,
    questions: Sequence[Question],
    has_change: frozenset[str],
    told_by: dict[str, tuple[tuple[str, str], ...]],
) -> list[Answer]:
    """Run what ``questions`` ask at one commit.

    ``has_change`` are the patches whose change upstream had made before it. ``told_by`` are the
    digests of the targets that tell, for patches that have such targets.
    """
    patches = list(dict.fromkeys(question.patch for question in questions))
    unpatched = bench.run(patches, "none")
    found: list[Answer] = []
    needy: dict[str, list[Question]] = {}
    for question in questions:
        outcome = unpatched[question.patch]
        if outcome in (Outcome.PASSES, Outcome.LACKS):
            digests = told_by.get(question.patch, ())
            proved = HAS_IT if question.patch in has_change else NEEDS_NONE
            told = question._replace(variant=None, digests=digests)
            found.append(Answer(told, commit, proved if digests else UNKNOWN, outcome.value, None))
        elif outcome is Outcome.FAILS and question.variant is not None:
            needy.setdefault(question.patch, []).append(question)
        else:
            found.append(Answer(question, commit, UNKNOWN, outcome.value, None))
    # Where edits of several variants fit, one after the other is tried.
    while any(needy.values()):
        tried = {patch: rest.pop(0) for patch, rest in needy.items() if rest}
        entries = {patch: [_entry(question)] for patch, question in tried.items()}
        bench.know(entries)
        for patch, outcome in bench.run(tried, ",".join(tried)).items():
            question = tried[patch]
            passes = outcome is Outcome.PASSES
            proved = question.variant if passes and question.variant else UNKNOWN
            found.append(Answer(question, commit, proved, Outcome.FAILS.value, outcome.value))
            if passes:
                needy[patch].clear()
    return found


def _entry(question: Question) -> dict[str, object]:
    return {
        "proved": question.variant,
        "digests": dict(question.digests),
        "releases": "a commit that is being proved",
        "commit": "",
    }


class Journal:
    """The answers so far, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: list[Answer] = []
        self.asked: set[Question] = set()
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                content = json.loads(line)
                asked = [_question(item) for item in content["asked"]]
                self.asked.update(asked)
                self.answers += [
                    Answer(_question(item[0]), *item[1:]) for item in content["answers"]
                ]

    def add(self, asked: Iterable[Question], answers: Sequence[Answer]) -> None:
        """Append what one commit has answered; on the disk when this returns."""
        asked = list(asked)
        self.asked.update(asked)
        self.answers += answers
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"asked": asked, "answers": answers}) + "\n")


def _question(item: Sequence[object]) -> Question:
    patch, variant, digests = item
    assert isinstance(patch, str)
    assert isinstance(digests, list)
    pairs = tuple((str(target), str(digest)) for target, digest in digests)
    return Question(patch, None if variant is None else str(variant), pairs)
