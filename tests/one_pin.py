"""``--one-pin-a-variant``: leave tests to a newer pin on which they ask the same.

What a backport's tests ask beside its proofs (each corner case, each way to reach the code, parity
over random lives) depends only on the variant that is applied, and on the source that it is applied
to. Where a newer pin gets the same variant, or needs none for the same reason, they run there. So
do the mutants of that source, and what shows a defect that a newer pin has as well. The proofs run
on each pin, with all their cases on that newer one and with the first and the last case here. The
matrix, which draws from all of the engine, runs on each pin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def left(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The tests that are left to a newer pin, because they ask the same there."""
    here = _here()
    newer = [item for item in items if max(_pins_of(item, here), default=here) > here]
    proofs = [item for item in newer if item.get_closest_marker("proof") is not None]
    # By the function, of which each parameter set is an item.
    first = {_function(item): item for item in reversed(proofs)}
    last = {_function(item): item for item in proofs}
    stay = {*first.values(), *last.values()}
    return [item for item in newer if item not in stay]


def _function(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


@cache
def _here() -> Version:
    return Version(core_version())


def _pins_of(item: pytest.Item, here: Version) -> set[Version]:
    """The pins on which the test asks the same; empty if it is not about one patch or defect."""
    callspec = getattr(item, "callspec", None)
    parameters = callspec.params if callspec else {}
    folder = item.path.parent.name
    if folder == "backports":
        alike = [pins_alike(id, here) for id in patches_of(item)]
        return set.intersection(*alike) if alike else set()
    if folder == "fuzz":
        about = parameters.get("case") or parameters.get("use")
        return pins_alike(about.patch.id, here) if about else set()
    if folder == "matrix" and "releases" in parameters:
        return {*SpecifierSet(parameters["releases"]).filter(pins())}
    return set()


def patches_of(item: pytest.Item) -> tuple[str, ...]:
    """The ids of the patches that a test of `tests/backports` is about.

    Those that its marker ``about`` names, or the one that its file is named after.
    """
    about = item.get_closest_marker("about")
    return about.args if about else (item.path.stem.removeprefix("test_").replace("_", "-"),)


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
