"""Writes small modules to disk, and records that patch them."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from megatron_patch.edits import Edit, Target, is_known_by_digest
from megatron_patch.engine import Engine
from megatron_patch.model import HAS_IT, Kind, Patch, Source, Variant
from megatron_patch.settings import Settings
from megatron_patch.states import PatchStatus
from megatron_patch.verdicts import find_definition


class Workshop:
    """A directory on ``sys.path`` with modules that a test writes, and engines on them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.engines: list[Engine] = []
        self.names: set[str] = set()

    def write(self, name: str, text: str) -> Path:
        path = self.directory / f"{name}.py"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        self.names.add(name)
        importlib.invalidate_caches()
        return path

    def load(self, name: str, text: str) -> ModuleType:
        self.write(name, text)
        return importlib.import_module(name)

    def digest(self, target: str) -> str:
        """The digest of a target as it is written now."""
        path = self.directory / f"{Target.parse(target).module}.py"
        return digest_in(path.read_text(encoding="utf-8"))(target)

    def patch(self, *edits: Edit, **options: Any) -> Patch:
        """A patch as of :func:`make_patch`, for the source as it is written now."""
        return make_patch(*edits, known=self.digest, **options)

    def engine(self, *patches: Patch, strict: bool = False) -> Engine:
        engine = Engine(patches)
        self.engines.append(engine)
        engine.install(Settings(frozenset(p.id for p in patches), strict))
        return engine


def digest_in(text: str) -> Callable[[str], str]:
    """A function that gives the digest of a target, if its module has this text."""

    def digest(target: str) -> str:
        found = find_definition(target, lambda _: text)
        assert found is not None
        return found.digest

    return digest


def make_patch(
    *edits: Edit,
    known: Callable[[str], str],
    id: str = "sample",
    has_it: Mapping[str, str] | None = None,
) -> Patch:
    """A patch of one variant, for targets of the digests that ``known`` gives.

    ``has_it`` are the digests of source that has the change.
    """
    targets = [edit.target for edit in edits if is_known_by_digest(edit)]
    digests = tuple((target, known(target)) for target in dict.fromkeys(targets))
    sources = [Source("the sample", digests, "the sample")]
    if has_it is not None:
        sources.append(Source(HAS_IT, tuple(has_it.items()), "9.9 and later"))
    return Patch(
        id=id,
        kind=Kind.CORRECTNESS,
        summary="a sample",
        symptom="none",
        outcome="some",
        upstream_pr=1,
        upstream_commit="0" * 40,
        upstream_date="2026-01-01",
        fixed_in="9.9",
        releases=">=1",
        removal="never",
        updated="2026-01-02",
        target=[*targets, edits[0].target][0],
        variants=(Variant("the sample", edits),),
        told_by=tuple(has_it or ()),
        sources=tuple(sources),
    )


def only(engine: Engine) -> PatchStatus:
    (entry,) = engine.status()
    return entry


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Workshop(tmp_path)
    yield made
    for engine in made.engines:
        engine.uninstall()
    for name in made.names:
        sys.modules.pop(name, None)
