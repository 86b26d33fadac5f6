"""Check the entries of the ledger against the commits that they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from megatron_patch.judge import trees_kept
from megatron_patch.verdicts import find_definition
from tools.history.commits import Clone
from tools.history.git import CloneError

Entry = Mapping[str, object]


def complaints(clone: Clone, patches: Mapping[str, Sequence[Entry]]) -> Iterator[str]:
    """A line for each target whose digest in an entry is not the one at the entry's commit.

    ``patches`` are the entries of the ledger by the id of their patch. Entries that name no commit
    were proved on a release, and are not checked.
    """
    by_commit: dict[str, list[tuple[str, Entry]]] = {}
    for patch, entries in patches.items():
        for entry in entries:
            if commit := str(entry["commit"]):
                by_commit.setdefault(commit, []).append((patch, entry))
    for commit, there in by_commit.items():
        try:
            clone.tree(commit)
        except CloneError:
            yield from (f"{patch}: {commit[:10]} is no such commit" for patch, _ in there)
            continue
        read = clone.reader(commit)
        with trees_kept():
            for patch, entry in there:
                for target, digest in dict(entry["digests"]).items():  # type: ignore[call-overload]
                    found = find_definition(target, read)
                    if found is None or found.digest != digest:
                        has = "has no such target" if found is None else f"has {found.digest}"
                        yield f"{patch}: {target} {digest}: {commit[:10]} {has}"
