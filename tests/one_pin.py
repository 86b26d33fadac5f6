"""``--one-pin-a-variant``: leave tests to a newer pin on which they ask the same.

What a backport's tests ask beside its proofs (each corner case, each way to reach the code, parity
over random lives) depends only on the variant that is applied, and on the source that it is applied
to. Where a newer pin gets the same variant, or needs none for the same reason, they run there. So
do the mutants of that source, and what shows a defect that a newer pin has as well. The proofs run
on each pin, and so does the matrix, which draws from all of the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from megatron_patch.backports import SERIES
from megatron_patch.ledger import sources_of
from megatron_patch.model import Source
from megatron_patch.testing.version import core_version
from tools.history import ledger_file
from tools.pins import read_pins
from tools.proving import entries

TOX_INI = Path(__file__).parents[1] / "tox.ini"


def is_left(item: pytest.Item) -> bool:
    """Whether the test is left to a newer pin, because it asks the same there."""
    if item.get_closest_marker("proof") is not None:
        return False
    here = _here()
    return max(_pins_of(item, here), default=here) > here


@cache
def _here() -> Version:
    return Version(core_version())


def _pins_of(item: pytest.Item, here: Version) -> set[Version]:
    """The pins on which the test asks the same; empty if it is not about one patch or defect."""
    callspec = getattr(item, "callspec", None)
    parameters = callspec.params if callspec else {}
    folder = item.path.parent.name
    if folder == "backports":
        return pins_alike(item.path.stem.removeprefix("test_").replace("_", "-"), here)
    if folder == "fuzz":
        about = parameters.get("case") or parameters.get("use")
        return pins_alike(about.patch.id, here) if about else set()
    if folder == "matrix" and "releases" in parameters:
        return {*SpecifierSet(parameters["releases"]).filter(pins())}
    return set()


@cache
def pins_alike(id: str, pin: Version) -> set[Version]:
    """The pins whose source is, to the patch, the same case as that of ``pin``.

    They need the same variant, or have the change, or need none. Empty if there is no such patch.
    """
    known = (source for patch in SERIES if patch.id == id for source in sources_of(patch))
    spans = {source: {*_pins_that_have(source)} for source in known}
    here = {source.proved for source, span in spans.items() if pin in span}
    return {other for source, span in spans.items() if source.proved in here for other in span}


def _pins_that_have(source: Source) -> Iterator[Version]:
    surveyed = _surveyed()
    for pin in pins():
        releases = (
            surveyed[target].get(known, {}).get("releases", ()) for target, known in source.digests
        )
        if source.digests and all(str(pin) in there for there in releases):
            yield pin


@cache
def pins() -> tuple[Version, ...]:
    """The pins of `tox.ini`."""
    return tuple(Version(pin.version) for pin in read_pins(TOX_INI.read_text(encoding="utf-8")))


@cache
def _surveyed():  # type: ignore[no-untyped-def]
    return ledger_file.load(entries.SOURCES).targets
