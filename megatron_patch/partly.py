"""Take back some of the patches that ``apply`` has made in a tree, and leave the others there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import in_place, tree_record
from .errors import TreeError
from .judge import judge, trees_kept
from .model import Patch
from .source_edits import source_patches
from .source_tree import SourceTree
from .tree_files import TreeFiles, digest
from .tree_record import Change, Record

Accepted = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class _Originals(SourceTree):
    """A tree as it was before the first ``apply``: ``contents`` by path from its root."""

    contents: Mapping[str, bytes]

    def content(self, path: Path) -> bytes:
        found = self.contents.get(path.relative_to(self.root).as_posix())
        return super().content(path) if found is None else found


def revert(
    tree: SourceTree, series: Sequence[Patch], selected: Collection[str], accepted: Accepted
) -> list[Path]:
    """Make the files as ``apply`` makes them without the ``selected`` patches; returns their paths.

    ``accepted`` are, by patch id, digests of source that was taken for known. Raises ``TreeError``,
    with nothing changed, as :func:`.in_place.revert` does, and when the patches that are known to
    be in the files are not all that was done to them, as after ``apply --allow-drift``.
    """
    with in_place.held(tree):
        files = TreeFiles(tree.root)
        record = tree_record.load(files)
        if record is None:
            return in_place.revert(tree)  # which says why there is nothing to do
        there = in_place.still_applied(tree, files, record, committed=False)
        now = {path: files.read(path) or b"" for path in there}
        first = {path: tree_record.content_of(files, there[path].before) for path in there}
        originals = _Originals(tree.root, first)
        with trees_kept():
            applied = _applied(tree, originals, series, accepted)
            if _edited(originals, series, applied, accepted) != now:
                raise TreeError(
                    f"{tree.root}: which patches are in its files cannot be told with certainty. "
                    "Put all of them back with `megatron-patch revert`, and apply again those that "
                    "are to stay"
                )
            left = [id for id in applied if id not in selected]
            after = _edited(originals, series, left, accepted)
        changed = {path: content for path, content in after.items() if content != now[path]}
        then = {
            path: Change(there[path].before, digest(content))
            for path, content in after.items()
            if content != first[path]
        }
        if changed:
            whole, before = Record(record.release, there), {path: now[path] for path in changed}
            in_place.make(files, whole, "revert", before, changed, then)
    return [tree.root / path for path in changed]


def _applied(
    tree: SourceTree, originals: SourceTree, series: Sequence[Patch], accepted: Accepted
) -> list[str]:
    """The ids of the patches that the originals need, and the tree does not, or not any more."""
    return [
        patch.id
        for patch in series
        if judge(patch, originals.read, accepted.get(patch.id, ()), series).variant is not None
        and judge(patch, tree.read, (), series).variant is None
    ]


def _edited(
    originals: _Originals, series: Sequence[Patch], ids: Iterable[str], accepted: Accepted
) -> dict[str, bytes]:
    """The contents of the files with these patches made in the originals."""
    contents = dict(originals.contents)
    for made in source_patches(originals, series, ids, accepted=accepted, partial=True)[0]:
        contents.update({edit.path: edit.after for edit in made.files})
    return contents
