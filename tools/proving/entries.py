"""The entries of the ledger: the answers, with the releases that have such source."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from packaging.version import Version

from megatron_patch import ledger
from megatron_patch.backports import SERIES
from megatron_patch.errors import LedgerError
from megatron_patch.model import HAS_IT, NEEDS_NONE, Patch
from tools.history import ledger_file
from tools.history.ledger import Ledger

from .answers import UNKNOWN, Answer
from .wanted import are_alike

SOURCES = ledger.FILE.with_name("sources.json")
Entry = Mapping[str, object]


def entries_of(
    patch: Patch, answers: Iterable[Answer], surveyed: Ledger, kept: Sequence[Entry]
) -> list[Entry]:
    """The entries of one patch: what needs nothing first, then each variant, oldest source first.

    ``kept`` are entries that stay, with the releases of a newer survey.
    """
    known = {_key(entry): _surveyed_again(entry, surveyed) for entry in kept}
    # `has it` first: the same source may look on another branch as if it had never needed it.
    for answer in sorted(answers, key=lambda answer: answer.proved == NEEDS_NONE):
        if answer.question.patch != patch.id or answer.proved == UNKNOWN:
            continue
        digests = dict(answer.digests)
        entry = {
            "proved": answer.proved,
            "digests": digests,
            "releases": where(digests, answer.commit, surveyed),
            "commit": answer.commit if is_commit(answer.commit) else "",
        }
        rivals = [
            key
            for key, other in known.items()
            if other["digests"] == digests
            and not _agree(patch, answer.proved, str(other["proved"]))
        ]
        variants = {variant.name for variant in patch.variants}
        if any(known[k]["commit"] or {k[0], answer.proved} <= variants for k in rivals):
            continue  # what was known first stays: the edits of several variants may be right
        for key in rivals:  # an entry without a commit gives way to a proof
            del known[key]
        # An entry that was proved on a commit stays; one without a commit is replaced.
        if not known.get(_key(entry), {}).get("commit"):
            known[_key(entry)] = entry
    names = [HAS_IT, NEEDS_NONE, *(variant.name for variant in patch.variants)]
    return sorted(
        known.values(),
        key=lambda entry: (
            names.index(str(entry["proved"])),
            json.dumps(entry["digests"], sort_keys=True),
        ),
    )


def _surveyed_again(entry: Entry, surveyed: Ledger) -> Entry:
    """The entry, with the releases that have its source by the survey, if all of it is there."""
    digests: Mapping[str, str] = entry["digests"]  # type: ignore[assignment]
    if not all(digest in surveyed.targets.get(t, {}) for t, digest in digests.items()):
        return entry
    where_before = str(entry["commit"] or entry["releases"])
    return {**entry, "releases": where(digests, where_before, surveyed)}


def _agree(patch: Patch, one: str, other: str) -> bool:
    """Whether the same source may be entered under both names."""
    variants = {variant.name: variant for variant in patch.variants}
    both = one in variants and other in variants
    return one == other or (both and are_alike(variants[one], variants[other]))


def _key(entry: Entry) -> tuple[str, str]:
    return str(entry["proved"]), json.dumps(entry["digests"], sort_keys=True)


def where(digests: Mapping[str, str], commit: str, surveyed: Ledger) -> str:
    """In words, the releases that have all of ``digests``; or else the branch of ``commit``.

    ``commit`` may also be the version of a tree, whose targets need not have been surveyed yet:
    then that version is returned.
    """
    if is_commit(commit):
        spans = [surveyed.targets[target][digest] for target, digest in digests.items()]
    else:
        spans = [surveyed.targets.get(t, {}).get(digest, {}) for t, digest in digests.items()]
    lists = [set(span.get("releases", ())) for span in spans]
    releases = sorted(set.intersection(*lists), key=Version) if lists else []
    if releases:
        return in_words(releases, surveyed)
    if not is_commit(commit):
        return commit
    branches = [set(span) - {"releases"} for span in spans]
    shared = sorted(set.intersection(*branches)) if branches else []
    branch = "main" if "main" in shared else (shared or ["a branch"])[0]
    return f"{branch} at {commit[:10]}"


def is_commit(text: str) -> bool:
    """Whether it is the full id of a commit, and not the version of a tree."""
    return re.fullmatch("[0-9a-f]{40}", text) is not None


def in_words(releases: Sequence[str], surveyed: Ledger) -> str:
    """``releases``, which are sorted, in words; those that follow each other as a span."""
    every = {
        release
        for digests in surveyed.targets.values()
        for span in digests.values()
        for release in span.get("releases", ())
    }
    order = sorted(every, key=Version)
    spans: list[list[str]] = []
    for release in releases:
        if spans and order.index(release) == order.index(spans[-1][-1]) + 1:
            spans[-1].append(release)
        else:
            spans.append([release])
    words = {1: "{0}", 2: "{0} and {1}"}
    return ", ".join(words.get(len(s), "{0} to {1}").format(s[0], s[-1]) for s in spans)


def of_series(answers: Sequence[Answer], *, keep: bool) -> dict[str, list[Entry]]:
    """The entries that ``answers`` come to, and with ``keep`` those of the present ledger."""
    surveyed = ledger_file.load(SOURCES)
    present = _present(ledger.FILE) if keep else {}
    return {
        patch.id: entries_of(patch, answers, surveyed, present.get(patch.id, ()))
        for patch in SERIES
    }


def _present(file: Path) -> dict[str, list[Entry]]:
    """The entries of the ledger as it is. Raises ``LedgerError`` when it cannot be read."""
    try:
        found: dict[str, list[Entry]] = json.loads(file.read_text(encoding="utf-8"))["patches"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(
            f"{file} cannot be read ({type(error).__name__}: {error}): restore it with git, or "
            "prove everything again with --anew"
        ) from error
    return found


def write(answers: Sequence[Answer], *, keep: bool) -> Path:
    """Write the ledger from ``answers``, with ``keep`` also from the present one; its path."""
    ledger_file.replace(ledger.FILE, as_text(of_series(answers, keep=keep)))
    return ledger.FILE


def as_text(patches: Mapping[str, Sequence[Entry]]) -> str:
    """The file, an entry a line."""
    parts = []
    for id, entries in patches.items():
        lines = ",\n".join(json.dumps(entry) for entry in entries)
        parts.append(f"{json.dumps(id)}: [\n{lines}\n]")
    return f'{{\n"format": {ledger.FORMAT},\n"patches": {{\n' + ",\n".join(parts) + "\n}\n}\n"
