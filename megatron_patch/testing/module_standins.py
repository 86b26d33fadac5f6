"""Put stand-ins in the place of modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def module(name: str, doc: str | None, contents: Mapping[str, Any]) -> ModuleType:
    """A module that holds ``contents``."""
    made = ModuleType(name, doc)
    # `importlib.util.find_spec`, which other packages call, raises for a module without a spec.
    made.__spec__ = ModuleSpec(name, loader=None)
    made.__dict__.update(contents)
    return made


@contextmanager
def importable(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Have imports find these modules by name; the import of one that is ``None`` fails.

    What was importable before is importable again afterwards. Modules that took something from them
    by name keep it.
    """
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)
