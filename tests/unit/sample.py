"""Writes small modules to disk, and records that patch them."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from megatron_patch.engine import Engine
from megatron_patch.fingerprint import locate
from megatron_patch.model import Edit, Family, Kind, Known, Patch, PatchStatus
from megatron_patch.settings import Settings


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
        module, qualname = target.split(":")
        text = (self.directory / f"{module}.py").read_text(encoding="utf-8")
        found = locate(module, text, qualname)
        assert found is not None
        return found.digest

    def engine(self, *patches: Patch, strict: bool = False) -> Engine:
        engine = Engine(patches)
        self.engines.append(engine)
        engine.install(Settings(frozenset(p.id for p in patches), strict))
        return engine


def make_patch(*edits: Edit, id: str = "sample", upstreamed: tuple[Known, ...] = ()) -> Patch:
    main = next((e for e in edits if e.digest is not None), edits[0])
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
        target=main.target,
        families=(Family("the sample", edits),),
        upstreamed=upstreamed,
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
