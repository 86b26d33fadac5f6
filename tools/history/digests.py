"""The digests of targets through the history of a branch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from megatron_patch.definitions import Definition, forget, locate
from megatron_patch.edits import Target
from megatron_patch.errors import TargetError
from megatron_patch.model import Patch

from .commits import Clone, Commit, paths_of

#: Target -> digest, ``None`` where there is no such definition.
Digests = Mapping[str, "str | None"]


def targets_of(series: Iterable[Patch]) -> tuple[str, ...]:
    """The targets whose source the records of ``series`` ask for, sorted."""
    return tuple(sorted({target for patch in series for target in patch.targets}))


class Found(NamedTuple):
    """The digests of the targets in one module's source, and what could not be read of it."""

    digests: Digests
    problems: tuple[str, ...]


class State(NamedTuple):
    """The source of all targets at ``commit``, and what it changed.

    ``changed`` are the targets that it changed, and the digests that they had before. ``blobs``
    are the ids of the blobs of the targets' files that are there. ``problems`` say what could not
    be read of the files that the commit touches; such targets are ``None`` in ``digests``.
    """

    commit: Commit
    digests: Digests
    changed: Digests
    blobs: Mapping[str, str]
    problems: tuple[str, ...]


class History:
    """The digests of ``targets`` at the commits of ``clone``. A blob is read only once."""

    def __init__(self, clone: Clone, targets: Sequence[str]) -> None:
        self.clone = clone
        self.modules: dict[str, list[str]] = {}
        for target in sorted(targets):
            self.modules.setdefault(Target.parse(target).module, []).append(target)
        self.paths = tuple(path for module in self.modules for path in paths_of(module))
        self.blobs_read = 0
        self._found: dict[tuple[str, str], Found] = {}
        self._digests: dict[str, str] = {}

    def at(self, commit: Commit) -> State:
        """The source of the targets at one commit, as if it added all that is there."""
        blobs = self.clone.blobs_at(commit.id, self.paths)
        digests, problems = self._read(blobs, self.modules)
        added = dict.fromkeys(target for target, digest in digests.items() if digest is not None)
        return State(commit, digests, added, blobs, problems)

    def states(self, commits: Sequence[Commit]) -> Iterator[State]:
        """One state for each of ``commits`` that touches a file of a target.

        ``commits`` are consecutive, oldest first, each the first parent of the next one.
        """
        base = commits[0].parent if commits else None
        blobs = dict(self.clone.blobs_at(base, self.paths)) if base else {}
        digests = dict(self._read(blobs, self.modules)[0])
        changes = self.clone.changes(commits, self.paths)
        for commit in commits:
            touched = changes.get(commit.id)
            if touched is None:
                continue
            for path, blob in touched.items():
                if blob is None:
                    blobs.pop(path, None)
                else:
                    blobs[path] = blob
            modules = [m for m in self.modules if not touched.keys().isdisjoint(paths_of(m))]
            found, problems = self._read(blobs, modules)
            changed = {t: digests[t] for t, digest in found.items() if digests[t] != digest}
            digests.update(found)
            yield State(commit, dict(digests), changed, dict(blobs), problems)

    def _read(
        self, blobs: Mapping[str, str], modules: Iterable[str]
    ) -> tuple[Digests, tuple[str, ...]]:
        digests: dict[str, str | None] = {}
        problems: list[str] = []
        for module in modules:
            path = next((path for path in paths_of(module) if path in blobs), None)
            if path is None:
                digests.update(dict.fromkeys(self.modules[module]))
                continue
            found = self._module(module, blobs[path])
            digests.update(found.digests)
            problems += [f"{path}: {problem}" for problem in found.problems]
        return digests, tuple(problems)

    def _module(self, module: str, blob: str) -> Found:
        key = module, blob
        if key not in self._found:
            self.blobs_read += 1
            self._found[key] = self._of_text(module, blob)
            forget()
        return self._found[key]

    def _of_text(self, module: str, blob: str) -> Found:
        digests: dict[str, str | None] = dict.fromkeys(self.modules[module])
        problems: list[str] = []
        try:
            text = self.clone.text(blob)
            for target in digests:
                try:
                    definition = locate(module, text, Target.parse(target).qualname)
                    if definition is not None:
                        digests[target] = self._digest(definition)
                except TargetError as error:
                    problems.append(str(error))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            digests = dict.fromkeys(digests)
            problems = [f"does not parse: {error}"]
        return Found(digests, tuple(problems))

    def _digest(self, definition: Definition) -> str:
        """The digest of the definition, computed once for the same text in all its versions."""
        found = self._digests.get(definition.segment)
        if found is None:
            found = self._digests[definition.segment] = definition.digest
        return found
