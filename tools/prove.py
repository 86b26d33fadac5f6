"""Prove which source each patch of the series is for, and write the ledger.

    python tools/prove.py --megatron Megatron-LM.git --journal proofs.jsonl --jobs 8
    python tools/prove.py --journal proofs.jsonl --write

A question is source that the ledger does not know, at a first-parent commit of main, dev or a
release branch, or at a release's tag. Few commits are chosen at which all questions come up, and
there the proofs of the patches (the tests with the marker `proof`) run unpatched and patched, on
the CPU. What fails unpatched and passes patched is what the variant is for; what passes unpatched
has the change, or needs none; all else stays unknown. Where another defect of the commit is in the
way, the proofs run beside the patches that are known there, without and with this one: so with
`--again` what stayed unknown is asked again when more is known. Answers go to the journal, and a
run that was stopped goes on where it was. `--write` makes the ledger of the answers,
`megatron_patch/ledger/proofs.json`. With `--anew` the present ledger counts for nothing, and
everything is proved.

With `--tree VERSION=DIR`, releases on disk take the place of the clone, for a record that is new.
What was proved there names no commit, and `--anew` on a clone replaces it.

What a variant replaces as a whole, or relies on (`Requires`), no proof can judge. Its digest has to
be known for that patch already, or you have to read the code: `--read DIGEST` says that you have,
with a digest that `check` prints.

With `--check`, nothing is proved: the digests of each entry have to be those that its commit has.

With `--patch ID`, questions about other patches stay open. `--plan` only says how much there is to
do. Megatron is executed: use a clone that you trust.

    python tools/prove.py --sample 2 --seed 7

proves again what the ledger says of builds of megatron-core that are drawn from the package index,
or from the trees of `--tree`, and writes nothing. Exit status 1: an entry is not what the proofs
say, or no survey knows its source.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from megatron_patch import ledger  # noqa: E402
from megatron_patch.backports import SERIES  # noqa: E402
from megatron_patch.errors import LedgerError  # noqa: E402
from megatron_patch.model import Patch  # noqa: E402
from tools.history.commits import Clone, Commit  # noqa: E402
from tools.history.drift import touching  # noqa: E402
from tools.history.git import CloneError  # noqa: E402
from tools.proving import entries, sampling, trees, wanted  # noqa: E402
from tools.proving.answers import Answer, Journal, answer  # noqa: E402
from tools.proving.checking import complaints  # noqa: E402
from tools.proving.options import parser  # noqa: E402
from tools.proving.runs import Bench  # noqa: E402
from tools.proving.wanted import Question  # noqa: E402


def commits_of(clone: Clone, patches: Sequence[Patch], since: str) -> list[Commit]:
    """The commits of releases, and those on main, dev and the release branches that touch a target.

    Each is there once; of the branches, those since the day ``since`` (YYYY-MM-DD).
    """
    found: dict[str, Commit] = {}
    targets = sorted({target for patch in patches for target in patch.targets})
    for commit in clone.releases().values():
        found[commit] = Commit(commit, None, "")
    for branch in ("main", "dev", *clone.release_branches()):
        for touched in touching(clone, branch, targets, since):
            found.setdefault(touched.id, touched)
    return list(found.values())


def has_change(clone: Clone, patch: Patch, commit: str) -> bool:
    """Whether ``commit`` comes after the change of ``patch`` upstream."""
    return patch.upstream_commit is not None and clone.is_ancestor(patch.upstream_commit, commit)


def prove(
    clone: Clone,
    commit: Commit,
    questions: Sequence[Question],
    patches: Sequence[Patch],
    options: argparse.Namespace,
) -> list[Answer]:
    """Answer ``questions`` at ``commit``; ``patches`` are the series, with what is known."""
    asked = {question.patch for question in questions}
    changed = frozenset(p.id for p in patches if p.id in asked and has_change(clone, p, commit.id))
    with Bench(clone.archive(commit.id), options.python, options.seconds) as bench:
        return answer(bench, commit.id, questions, changed, patches)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prove, or write what was proved; returns the exit status."""
    made = parser((__doc__ or "").splitlines()[0])
    options = made.parse_args(arguments)
    if options.sample:
        if options.megatron or options.journal or options.write or options.check:
            made.error("--sample is for builds, or for --tree, and writes nothing")
        return sampling.run(SERIES, options)
    if not options.check and options.journal is None:
        made.error("expected --journal FILE, --check or --sample")
    if options.write and options.anew and options.patch:
        made.error(
            "--write with --anew and --patch would leave the other patches out of the ledger; "
            "write without --anew"
        )
    journal = Journal(options.journal or Path())
    one_place = (options.megatron is None) != (not options.tree)
    if not options.write and (not one_place or (options.check and options.tree)):
        made.error("expected one of --megatron and --tree; with --check, --megatron")
    try:
        if options.write:
            path = entries.write(journal.answers, keep=not options.anew)
            print(f"wrote {path}")
            return 0
        if options.tree:
            return run_on_trees(journal, options)
        with Clone(options.megatron) as clone:
            return check(clone) if options.check else run(clone, journal, options)
    except (CloneError, LedgerError) as error:
        print(f"prove: {error}", file=sys.stderr)
        return 2


def check(clone: Clone) -> int:
    """Say which entries of the ledger are not what their commits have; returns the exit status."""
    entries = json.loads(ledger.FILE.read_text(encoding="utf-8"))["patches"]
    found = list(complaints(clone, entries))
    for complaint in found:
        print(f"prove: {complaint}", file=sys.stderr)
    number = sum(map(len, entries.values()))
    print(f"{number} entries, {len(found)} that are not what their commits have")
    return 1 if found else 0


def run_on_trees(journal: Journal, options: argparse.Namespace) -> int:
    """Ask and answer what is open on each tree, one after the other; or plan."""
    tried: set[Question] = set() if options.again else journal.unknown
    for tree in options.tree:
        patches = knowing(journal, keep=not options.anew)
        asked = [
            question
            for question in trees.ask(tree, asked_about(patches, options), options.read)
            if question not in tried
        ]
        print(f"{tree.version}: {len(asked)} questions", *(question.patch for question in asked))
        if asked and not options.plan:
            answers = trees.prove(tree, patches, asked, options.python, options.seconds)
            journal.add(answers)
            for answer in answers:
                how = f"unpatched it {answer.unpatched}"
                how += f", patched it {answer.patched}" * (answer.patched is not None)
                print(f"{tree.version}: {answer.question.patch}: {answer.proved} ({how})")
    return 0


def run(clone: Clone, journal: Journal, options: argparse.Namespace) -> int:
    """Ask and answer until nothing is left that could be answered; or plan."""
    begin = time.monotonic()
    tried: set[Question] = set() if options.again else journal.unknown
    while plan := planned(clone, journal, tried, options):
        print(f"{sum(len(asked) for _, asked in plan)} questions at {len(plan)} commits")
        if options.plan:
            for commit, asked in plan:
                print(commit.short, commit.date, *(q.patch for q in asked))
            return 0
        for number, (commit, asked, answers) in enumerate(proved(options, plan, journal), 1):
            journal.add(answers)
            tried.update(asked)
            words = ", ".join(f"{a.question.patch}: {a.proved}" for a in answers)
            passed = time.monotonic() - begin
            print(f"{number} of {len(plan)}, {passed:.0f} s: {commit.short}: {words}", flush=True)
    print(f"nothing left to ask; {len(journal.unknown)} questions without an answer")
    return 0


Plan = list[tuple[Commit, tuple[Question, ...]]]


def knowing(journal: Journal, *, keep: bool) -> list[Patch]:
    """The series, with what the journal has answered and, with ``keep``, the ledger knows."""
    known = entries.of_series(journal.answers, keep=keep)
    return [patch._replace(sources=tuple(map(ledger.source, known[patch.id]))) for patch in SERIES]


def asked_about(patches: Sequence[Patch], options: argparse.Namespace) -> list[Patch]:
    """Those that ``--patch`` names, or all."""
    return [patch for patch in patches if not options.patch or patch.id in options.patch]


def planned(
    clone: Clone, journal: Journal, tried: set[Question], options: argparse.Namespace
) -> Plan:
    """What has to be asked, where, with what the journal has answered so far."""
    patches = asked_about(knowing(journal, keep=not options.anew), options)
    commits = commits_of(clone, patches, options.since)
    questions = wanted.ask(clone, patches, commits, options.read)
    return wanted.cover({q: commits for q, commits in questions.items() if q not in tried})


def proved(
    options: argparse.Namespace, plan: Plan, journal: Journal
) -> Iterator[tuple[Commit, tuple[Question, ...], list[Answer]]]:
    """The answers of each commit of the plan, as they come."""
    patches = knowing(journal, keep=not options.anew)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        running = {
            pool.submit(prove, Clone(options.megatron), commit, asked, patches, options): (
                commit,
                asked,
            )
            for commit, asked in plan
        }
        for done in concurrent.futures.as_completed(running):
            yield *running[done], done.result()


if __name__ == "__main__":
    sys.exit(main())
