"""The ledger: which source is known for each patch of the series, and what upstream has had.

``proofs.json`` says which source is known, and on which commit that was proved. It is made by
``tools/prove.py``, and read when the first patch is judged. ``sources.json`` is made by
``tools/survey.py``, and not read at run time. It says of each target which digests it has had
upstream, and for each of them the releases that have it and, by branch, the first and the last
first-parent commit that do. There is no last one while the head of the branch, as it was surveyed,
has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import LedgerError
from ..model import Patch, Source
from ..sources import read_data

#: The form of both files. One of another form is not read.
FORMAT = 1
FILE = Path(__file__).with_name("proofs.json")


def sources_of(patch: Patch) -> tuple[Source, ...]:
    """The source that is known for ``patch``; what needs edits is in the order of its variants.

    Raises ``LedgerError`` when the ledger is of another form than this package reads.
    """
    found = _read(FILE).get(patch.id, ()) if patch.sources is None else patch.sources
    names = [variant.name for variant in patch.variants]
    needy = sorted((s for s in found if s.proved in names), key=lambda s: names.index(s.proved))
    return (*(s for s in found if s.proved not in names), *needy)


@cache
def _read(file: Path) -> dict[str, tuple[Source, ...]]:
    content = json.loads(read_data(str(file)))
    if content.get("format") != FORMAT:
        raise LedgerError(
            f"{file} is a ledger of format {content.get('format')}; expected {FORMAT}, that of "
            "this package: install the package anew, with the ledger that belongs to it"
        )
    return {id: tuple(map(source, entries)) for id, entries in content["patches"].items()}


def source(entry: Mapping[str, Any]) -> Source:
    """The source that an entry of the file is about."""
    digests = tuple(entry["digests"].items())
    return Source(entry["proved"], digests, entry["releases"], entry["commit"])
