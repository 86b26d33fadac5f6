"""Where the targets are in the files of the pinned releases, so that these need not be parsed.

A file is known by the digest of its whole text. What its outline says is what
:func:`megatron_patch.definitions.parsed` finds in that text; ``ledger/outlines.json``, made by
``tools/refresh_patches.py``, has it for each pin. Any other text is parsed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .sources import read_data

FILE = Path(__file__).with_name("ledger") / "outlines.json"


class Place(NamedTuple):
    """The numbers, from 1, of a definition's first and last line, and its digest."""

    first: int
    last: int
    digest: str


class Outline(NamedTuple):
    """What a file has of the targets, by dotted name; ``None`` where it has no such definition.

    ``future_flags`` and ``imported_names`` are those of its definitions.
    """

    places: Mapping[str, Place | None]
    future_flags: int
    imported_names: tuple[str, ...]


def digest_of(text: str) -> str:
    """The key of a file's text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@lru_cache(maxsize=16)
def outline_of(text: str) -> Outline | None:
    """The outline of the file with this ``text``, ``None`` unless it is one of a pinned release."""
    entry = _files().get(digest_of(text))
    return None if entry is None else _outline(entry)


def _outline(entry: Mapping[str, Any]) -> Outline:
    places = {name: place and Place(*place) for name, place in entry["places"].items()}
    return Outline(places, entry["future_flags"], tuple(entry["imported_names"]))


@cache
def _files() -> Mapping[str, Mapping[str, Any]]:
    files: Mapping[str, Mapping[str, Any]] = json.loads(read_data(str(FILE)))
    return files


def as_json(outlines: Mapping[str, Outline]) -> str:
    """The content of the file, by the digests of the texts; a line for each of these."""
    lines = [
        f"{json.dumps(digest)}: {json.dumps(outline._asdict(), sort_keys=True)}"
        for digest, outline in sorted(outlines.items())
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"
