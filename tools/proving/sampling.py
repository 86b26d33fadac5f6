"""Prove again what the ledger says of a sample of builds, to find entries that no proof backs."""

from __future__ import annotations

import argparse
import functools
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from packaging.version import Version

from megatron_patch.judge import TOLD, trees_kept, variant_of
from megatron_patch.ledger import sources_of
from megatron_patch.model import Patch, Source
from megatron_patch.source_tree import SourceTree
from megatron_patch.unknown import differences, misses_of
from megatron_patch.verdicts import Reader, find_definition
from tools import pins
from tools.history import ledger_file
from tools.history.ledger import Ledger
from tools.history.trees import Tree

from .answers import Answer, answer
from .entries import SOURCES, is_commit, where
from .runs import Bench
from .wanted import Question, question_at

#: After so many builds that do not run here, no more are drawn.
MOST_LEFT = 10


class Entry(NamedTuple):
    """An entry of the ledger that the source of a tree matches."""

    patch: Patch
    source: Source

    def __str__(self) -> str:
        return f"{self.patch.id}: the ledger says {self.source.proved!r} of {self.source.releases}"


def draw(builds: Sequence[str], number: int, seed: int) -> list[str]:
    """``number`` of ``builds``, each of another release where possible.

    A release can have hundreds of development builds: drawn from all builds alike, hardly any other
    release would come up.
    """
    chance = random.Random(seed)
    by_release: dict[str, list[str]] = {}
    for build in sorted(builds, key=Version):
        by_release.setdefault(Version(build).base_version, []).append(build)
    shuffled = [chance.sample(found, len(found)) for found in by_release.values()]
    chance.shuffle(shuffled)
    rounds = zip_longest(*shuffled)
    return [build for one in rounds for build in one if build is not None][:number]


def matching(patches: Sequence[Patch], read: Reader) -> list[Entry]:
    """The entries of the ledger that the source which ``read`` gives matches."""
    find = functools.cache(functools.partial(find_definition, read=read))
    found = []
    for patch in patches:
        if find(patch.target) is None:
            continue  # such source is not patched at all
        for source in sources_of(patch):
            if source.proved in TOLD:
                matches = not differences(source, find)
            else:
                matches = not any(misses_of(variant_of(patch, source), source, find))
            if matches:
                found.append(Entry(patch, source))
    return found


def question_of(entry: Entry, read: Reader) -> Question | None:
    """What would have to be asked without the entry; the entry's own variant is tried first.

    The edits of several variants may be right, and the one that was proved first is in the ledger.
    """
    question = question_at(entry.patch, read)
    if question is None:
        return None
    fitting = sorted(question.fitting, key=lambda variant: variant[0] != entry.source.proved)
    return question._replace(fitting=tuple(fitting))


def is_as_recorded(entry: Entry, proved: str) -> bool:
    """Whether the proofs say what the entry says.

    `has it` and `needs none` count as the same: only upstream's history tells them apart.
    """
    return proved == entry.source.proved or {proved, entry.source.proved} <= TOLD.keys()


class Checked(NamedTuple):
    """An entry, and what the proofs say of it now."""

    entry: Entry
    answer: Answer

    @property
    def is_right(self) -> bool:
        return is_as_recorded(self.entry, self.answer.proved)

    def __str__(self) -> str:
        outcome = f"unpatched it {self.answer.unpatched}"
        if self.answer.patched is not None:
            outcome += f", patched it {self.answer.patched}"
        return f"{self.entry}; the proofs say {self.answer.proved!r} ({outcome})"


class CannotRunError(Exception):
    """Megatron cannot be run here as proofs run it; nothing can be proved of it."""


def check(
    tree: Tree,
    patches: Sequence[Patch],
    python: str = sys.executable,
    seconds: float = 600,
    most: int | None = None,
    seed: int = 0,
) -> list[Checked]:
    """Prove the entries that the tree matches, as if the ledger had none.

    With ``most``, at most so many of them, drawn by ``seed``. Raises ``CannotRunError`` for a tree
    on which the engine cannot be built at all.
    """
    read = SourceTree.at(tree.root).read
    with trees_kept():
        entries = matching(patches, read)
        if most is not None and most < len(entries):
            entries = random.Random(seed).sample(entries, most)
        asked = [(entry, question_of(entry, read)) for entry in entries]
    rounds: list[dict[str, tuple[Entry, Question]]] = []
    for entry, question in asked:
        assert question is not None, f"{entry}: its source was read a moment ago"
        place = sum(entry.patch.id in one for one in rounds)
        if place == len(rounds):
            rounds.append({})
        rounds[place][entry.patch.id] = entry, question
    found = []
    with Bench(tree.root, python, seconds) as bench:
        if not bench.builds_an_engine():
            raise CannotRunError(tree.version)
        for one in rounds:
            questions = [question for _, question in one.values()]
            for made in answer(bench, tree.version, questions, frozenset(), patches):
                found.append(Checked(one[made.question.patch][0], made))
    return found


def unsurveyed(patches: Sequence[Patch], surveyed: Ledger) -> Iterator[str]:
    """A line for each entry whose source is in no survey of upstream's history."""
    for patch in patches:
        for source in sources_of(patch):
            entry = Entry(patch, source)
            strange = [
                f"{target} {digest}"
                for target, digest in source.digests
                if digest not in surveyed.targets.get(target, {})
            ]
            if strange:
                yield f"{entry}, with source that no survey has seen: {', '.join(strange)}"
            elif is_commit(source.commit):
                expected = where(dict(source.digests), source.commit, surveyed)
                if source.releases != expected:
                    yield f"{entry}; by the survey that source is of {expected}"


def run(series: Sequence[Patch], options: argparse.Namespace) -> int:
    """Prove again what the ledger says of a few builds; returns the exit status."""
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    wrong = list(unsurveyed(series, ledger_file.load(SOURCES)))
    proved = left = 0
    with ExitStack() as stack:
        folder = options.cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            on_disk = {tree.version: tree for tree in options.tree}
            builds = list(on_disk) or candidates()
            for version in draw(builds, len(builds), seed):
                if proved == options.sample:
                    break
                tree = on_disk.get(version) or Tree(
                    version, stack.enter_context(pins.source(version, folder)).root
                )
                begin = time.monotonic()
                try:
                    found = check(
                        tree, series, options.python, options.seconds, options.entries, seed
                    )
                except CannotRunError:
                    print(f"{version}: does not run here; another build is drawn", flush=True)
                    left += 1
                    if left == MOST_LEFT:
                        break
                    continue
                proved += 1
                wrong += (f"{version}: {checked}" for checked in found if not checked.is_right)
                passed = time.monotonic() - begin
                print(f"{version}: {len(found)} entries proved again, {passed:.0f} s", flush=True)
        except pins.PinError as error:
            print(f"prove: {error}", file=sys.stderr)
            return 2
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    if wrong:
        print("remove such an entry from the ledger, and prove its source with --megatron")
    if proved < min(options.sample, len(builds)):
        print(f"prove: only {proved} of {options.sample} builds run here", file=sys.stderr)
        return 2
    return int(bool(wrong))


def candidates() -> list[str]:
    """The builds since the oldest pin, without the pins, on which all tests run anyway."""
    pinned = pins.read_pins((pins.REPOSITORY / "tox.ini").read_text(encoding="utf-8"))
    tested = {Version(pin.version) for pin in pinned}
    oldest = min(tested).release
    return [v for v in pins.builds() if Version(v).release >= oldest and Version(v) not in tested]
