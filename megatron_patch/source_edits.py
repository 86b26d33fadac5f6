"""Make the edits of the series in the source text of a tree: what export and apply are made of."""

from __future__ import annotations

import functools
import io
import tokenize
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from . import text_edits
from .definitions import no_search_for_garbage
from .edits import Add, Requires, Target
from .errors import DriftedError, RewriteError, TargetError
from .judge import judge
from .model import Patch, Variant
from .source_tree import SourceTree
from .unknown import already_made
from .verdicts import Verdict, find_definition


@dataclass(frozen=True)
class FileEdit:
    """One file before and after one patch; ``path`` is relative to the tree's root, with ``/``."""

    path: str
    before: bytes
    after: bytes


@dataclass(frozen=True)
class SourcePatch:
    """What one patch of the series changes in a tree that has those before it already."""

    number: int  #: its place in the whole series, from 1: the same on every tree
    patch: Patch
    variant: Variant
    files: tuple[FileEdit, ...]


@dataclass(frozen=True)
class Skipped:
    """A patch that changes nothing in a tree, and why."""

    patch: Patch
    verdict: Verdict
    reason: str


@no_search_for_garbage()
def source_patches(
    tree: SourceTree,
    series: Sequence[Patch],
    selected: Iterable[str],
    *,
    allow_drift: bool = False,
    accepted: Mapping[str, Collection[str]] = MappingProxyType({}),
    partial: bool = False,
) -> tuple[list[SourcePatch], list[Skipped]]:
    """The edits of the ``selected`` patches that are applicable to ``tree``, in order.

    With ``allow_drift``, a patch whose source is not known is made all the same if its edits fit
    the source: a person is going to read the result. ``accepted`` are, by patch id, digests of
    source that is to be taken for known. Raises ``DriftedError``, naming the patches, when the
    source of some is not known, or when their edits do not fit it; with ``partial`` these are
    skipped as a whole. Raises ``SettingsError`` when a digest of ``accepted`` is not there.
    """
    files = _Files(tree)
    made: list[SourcePatch] = []
    skipped: list[Skipped] = []
    drifted: list[Skipped] = []
    chosen = frozenset(selected)
    find = functools.partial(find_definition, read=tree.read)
    for number, patch in enumerate(series, 1):
        if patch.id not in chosen:
            continue
        judgement = judge(patch, tree.read, accepted.get(patch.id, ()), series)
        variant = judgement.variant
        if variant is None and judgement.verdict is not Verdict.DRIFTED:
            skipped.append(Skipped(patch, judgement.verdict, judgement.reason))
            continue
        why = judgement.reason
        if variant is None and allow_drift and judgement.closest is not None:
            made_there = already_made(judgement.closest, find, tree.read)
            variant, why = (None, made_there) if made_there else (judgement.closest, why)
        if variant is None:
            drifted.append(Skipped(patch, Verdict.DRIFTED, why))
            continue
        try:
            made.append(SourcePatch(number, patch, variant, files.edit(variant)))
        except (RewriteError, TargetError, SyntaxError, UnicodeError) as error:
            drifted.append(Skipped(patch, Verdict.DRIFTED, str(error)))
    if drifted and not partial:
        raise DriftedError("\n".join(f"{entry.patch.id}: {entry.reason}" for entry in drifted))
    return made, [*skipped, *drifted]


class _Files:
    """The files of a tree as the patches so far have left them."""

    def __init__(self, tree: SourceTree) -> None:
        self._tree = tree
        self._texts: dict[str, str] = {}
        self._encodings: dict[str, str] = {}

    def edit(self, variant: Variant) -> tuple[FileEdit, ...]:
        """Make the edits of one variant; all or none.

        Raises ``TargetError`` or ``RewriteError`` when one of them does not fit.
        """
        modules = dict.fromkeys(Target.parse(edit.target).module for edit in variant.edits)
        before = {module: self._text(module) for module in modules}
        after = dict(before)
        for module, text in before.items():
            edits = [
                edit
                for edit in variant.edits
                if not isinstance(edit, (Add, Requires))
                and Target.parse(edit.target).module == module
            ]
            after[module] = text_edits.with_edits(module, text, edits)
        # Helpers come last, so that all targets still are where the tree has them.
        for edit in variant.edits:
            if isinstance(edit, Add):
                module = Target.parse(edit.target).module
                after[module] = text_edits.with_addition(module, after[module], edit, variant)
        self._texts.update(after)
        return tuple(
            FileEdit(self._path(module), self._encoded(module, old), self._encoded(module, new))
            for module, old in before.items()
            if (new := after[module]) != old
        )

    def _path(self, module: str) -> str:
        path = self._tree.path(module)
        assert path is not None
        return path.relative_to(self._tree.root).as_posix()

    def _text(self, module: str) -> str:
        """The text with the file's own line ends."""
        if module not in self._texts:
            path = self._tree.path(module)
            if path is None:
                raise TargetError(f"{module} does not exist in {self._tree.root}")
            content = self._tree.content(path)
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            self._encodings[module] = encoding
            self._texts[module] = content.decode(encoding)
        return self._texts[module]

    def _encoded(self, module: str, text: str) -> bytes:
        return text.encode(self._encodings[module])
