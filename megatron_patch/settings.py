"""The environment variables, read once at ``install()``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from .errors import SettingsError
from .model import Kind, Origin, Patch

SELECTION = "MEGATRON_PATCH"
ACCEPT = "MEGATRON_PATCH_ACCEPT"
STRICT = "MEGATRON_PATCH_STRICT"
RECORDS = "MEGATRON_PATCH_RECORDS"
VARIABLES = (SELECTION, ACCEPT, STRICT, RECORDS)


class Settings(NamedTuple):
    """Which patches are selected, by id, and whether an unhealthy one raises.

    ``accepted`` holds, by patch id, digests of source that its user takes for known, and ``given``
    the variables that were read and are not empty.
    """

    selected: frozenset[str] = frozenset()
    strict: bool = False
    accepted: Mapping[str, frozenset[str]] = MappingProxyType({})
    given: Mapping[str, str] = MappingProxyType({})

    @classmethod
    def from_environment(
        cls, series: Sequence[Patch], environment: Mapping[str, str] | None = None
    ) -> Settings:
        """Read the variables. Raises ``SettingsError`` that names the variable and the values."""
        values = os.environ if environment is None else environment
        return cls(
            selected=selected(series, values.get(SELECTION, "")),
            strict=_flag(values.get(STRICT, "")),
            accepted=_accepted(series, values.get(ACCEPT, "")),
            given={name: values[name] for name in VARIABLES if values.get(name)},
        )


def names_of(series: Sequence[Patch]) -> dict[str, set[str]]:
    """What can be selected: the ids of each group, and each id itself."""
    names: dict[str, set[str]] = {"all": set(), "none": set()}
    names.update((group.value, set()) for group in (*Kind, *Origin))
    for patch in series:
        if patch.default:
            for name in ("all", patch.kind.value, patch.origin.value):
                names[name].add(patch.id)
    return {**names, **{p.id: {p.id} for p in series}}


def selected(series: Sequence[Patch], text: str, where: str = SELECTION) -> frozenset[str]:
    """The ids that a list of ids, groups and either with a leading ``-`` selects.

    Raises ``SettingsError`` that names ``where`` the list is from, and what is unknown in it.
    """
    names = names_of(series)
    items = [item.strip() for item in text.split(",") if item.strip()]
    # A list that starts by taking away takes away from the default.
    chosen = set(names["all"]) if not items or items[0].startswith("-") else set()
    for item in items:
        name = item[1:].strip() if item.startswith("-") else item
        if name not in names or item == "-none":
            raise SettingsError(
                f"{where}={text!r}: unknown name {item!r}; expected a comma-separated list "
                f"of {', '.join(names)}, each optionally with a leading '-'"
            )
        chosen = chosen - names[name] if item.startswith("-") else chosen | names[name]
    return frozenset(chosen)


def _accepted(series: Sequence[Patch], text: str) -> dict[str, frozenset[str]]:
    ids = [patch.id for patch in series]
    accepted: dict[str, frozenset[str]] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, _, digest = item.partition("@")
        if name not in ids or len(digest) != 16 or digest.strip("0123456789abcdef"):
            raise SettingsError(
                f"{ACCEPT}={text!r}: {item!r} is not understood; expected a comma-separated list "
                f"of ID@DIGEST, as `megatron-patch check` prints it: an id of {', '.join(ids)}, "
                "and 16 hexadecimal digits"
            )
        accepted[name] = accepted.get(name, frozenset()) | {digest}
    return accepted


def _flag(text: str) -> bool:
    if text not in ("", "0", "1"):
        raise SettingsError(f"{STRICT}={text!r}: expected 0 or 1")
    return text == "1"
