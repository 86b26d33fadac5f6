"""Compare source with the fingerprints of a record. Nothing is imported or executed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from . import fingerprint, rewrite
from .errors import RewriteError, SettingsError, TargetError
from .fingerprint import Definition
from .model import Add, Edit, Family, Patch, State, Substitute, Target
from .sources import read_source

#: Gives a module's source text, or ``None`` for a module that does not exist.
Reader = Callable[[str], "str | None"]


@dataclass(frozen=True)
class Miss:
    """A target whose source is not the one that an edit was written for."""

    edit: Edit
    definition: Definition | None

    @property
    def found(self) -> str | None:
        """The digest of what is there, ``None`` if nothing is."""
        return None if self.definition is None else self.definition.digest

    @property
    def anchor(self) -> str | None:
        """What is wrong with the code that a ``Substitute`` looks for, ``None`` if nothing is."""
        if self.definition is None or not isinstance(self.edit, Substitute):
            return None
        count = rewrite.occurrences(self.definition, self.edit)
        times = "is not there" if count == 0 else f"is there {count} times"
        return None if count == 1 else f"`{self.edit.find.strip()}` {times}; expected once"

    def __str__(self) -> str:
        found = f"found {self.found}" if self.found else "not found"
        return f"{self.edit.target}: expected {self.edit.digest}, {found}"


@dataclass(frozen=True)
class Verdict:
    """What the source says of a patch: ``family`` is set when, and only when, it applies.

    Where the source is not known, ``misses`` are those against the ``closest`` family.
    """

    state: State
    reason: str
    family: Family | None = None
    misses: tuple[Miss, ...] = ()
    closest: Family | None = None


def judge(
    patch: Patch,
    read: Reader = read_source,
    accepted: Collection[str] = frozenset(),
    series: Sequence[Patch] = (),
) -> Verdict:
    """What the source that ``read`` gives means for ``patch``.

    ``accepted`` are digests of source that is to be taken for that of the closest family. Raises
    ``SettingsError`` when one of them is not the digest of any target of the patch. ``series`` are
    patches, ``patch`` among them, that may be in the source already, put there by
    ``megatron-patch apply`` or as exported patches.
    """
    find = functools.cache(functools.partial(find_definition, read=functools.cache(read)))
    try:
        _check_accepted(patch, find, accepted)
        if find(patch.target) is None:
            return Verdict(State.NOT_APPLICABLE, f"{patch.target} does not exist in this release")
        for known in patch.upstreamed:
            found = find(known.target)
            if found is not None and found.digest == known.digest:
                return Verdict(State.UPSTREAMED, f"{known.target} is that of {known.releases}")
        for known in patch.unaffected:
            found = find(known.target)
            if found is not None and found.digest == known.digest:
                reason = f"{known.target} is that of {known.releases}, which needs no patch"
                return Verdict(State.NOT_APPLICABLE, reason)
        closest: tuple[tuple[int, ...], Family, tuple[Miss, ...]] | None = None
        for family in patch.families:
            misses = tuple(_misses(family, find))
            if not misses:
                return Verdict(State.PENDING, f"source of {family.releases}", family)
            rank = _distance(family, misses)
            if closest is None or rank < closest[0]:
                closest = rank, family, misses
        if closest is None:
            return Verdict(State.DRIFTED, f"{patch.target}: no known source")
        for family in patch.families if series else ():
            verdict = _verdict_below_edits(patch, family, find, series)
            if verdict is not None:
                return verdict
        return _verdict_of_unknown(*closest[1:], find, accepted)
    except SyntaxError as error:
        return Verdict(State.DRIFTED, f"{patch.target}: the source does not parse: {error}")
    except TargetError as error:
        return Verdict(State.DRIFTED, str(error))


def find_definition(target: str, read: Reader) -> Definition | None:
    """The definition of ``module:Class.method``, ``None`` if there is no such thing."""
    parsed = Target.parse(target)
    text = read(parsed.module)
    return None if text is None else fingerprint.locate(parsed.module, text, parsed.qualname)


Finder = Callable[[str], "Definition | None"]


def _misses(family: Family, find: Finder) -> Iterator[Miss]:
    for edit in family.edits:
        if not isinstance(edit, Add):
            found = find(edit.target)
            if found is None or found.digest != edit.digest:
                yield Miss(edit, found)


def _distance(family: Family, misses: tuple[Miss, ...]) -> tuple[int, ...]:
    """How far the source is from a family: first what is not there, then what does not fit."""
    absent = sum(miss.definition is None for miss in misses)
    unfit = sum(miss.anchor is not None for miss in misses)
    return absent, unfit, len(misses), -len(family.edits)


def _verdict_of_unknown(
    family: Family, misses: tuple[Miss, ...], find: Finder, accepted: Collection[str]
) -> Verdict:
    # Several edits of one target miss it alike.
    reason = f"{'; '.join(dict.fromkeys(map(str, misses)))} (source of {family.releases})"
    if not all(miss.found in accepted for miss in misses):
        return Verdict(State.DRIFTED, f"unknown source: {reason}", None, misses, family)
    why = why_not(family, find)
    if why is not None:
        return Verdict(State.DRIFTED, f"accepted source, but {why}", None, misses, family)
    return Verdict(State.PENDING, f"accepted source: {reason}", family, misses)


def _verdict_below_edits(
    patch: Patch, family: Family, find: Finder, series: Sequence[Patch]
) -> Verdict | None:
    """The verdict if the source is that of ``family`` with edits of the series made in it."""
    own = []
    for edit in family.edits:
        if not isinstance(edit, Add):
            found = find(edit.target)
            below = found and _look_below(found, edit.target, patch, family, series)
            if not below or below[0] != edit.digest:
                return None
            own.append(patch.id in below[1])
    if all(own):
        reason = f"source of {family.releases}, with this patch made in it"
        return Verdict(State.UPSTREAMED, reason)
    if not any(own):
        reason = f"source of {family.releases}, with other patches of the series made in it"
        return Verdict(State.PENDING, reason, family)
    return None


def _look_below(
    definition: Definition, target: str, patch: Patch, family: Family, series: Sequence[Patch]
) -> tuple[str, set[str]]:
    """The digest of a target without the edits of the series, and the ids of those found."""
    node = definition.node
    ids: set[str] = set()
    for other in reversed(series):
        for candidate in (family,) if other.id == patch.id else other.families:
            edits = [e for e in candidate.edits if e.target == target and not isinstance(e, Add)]
            below = rewrite.undone(node, edits) if edits else None
            if below is None:
                continue
            ids.add(other.id)
            if isinstance(below, str):
                return below, ids
            node = below
            break
    return fingerprint.digest(node), ids


def why_not(family: Family, find: Finder) -> str | None:
    """Why the edits of ``family`` do not fit the source, ``None`` if they do."""
    edited: dict[str, Definition] = {}
    try:
        for edit in family.edits:
            if isinstance(edit, Add):
                continue
            definition = edited.get(edit.target) or find(edit.target)
            if definition is None:
                return f"{edit.target} is not found"
            edited[edit.target] = rewrite.edited(definition, edit)
    except RewriteError as error:
        return str(error)
    return None


def _check_accepted(patch: Patch, find: Finder, accepted: Collection[str]) -> None:
    if not accepted:
        return
    edits = [edit for family in patch.families for edit in family.edits if edit.digest]
    targets = dict.fromkeys(item.target for item in (*edits, *patch.upstreamed, *patch.unaffected))
    digests = {found.digest: target for target in targets if (found := find(target))}
    for digest in accepted:
        if digest not in digests:
            there = ", ".join(f"{d} ({t})" for d, t in digests.items()) or "no target at all"
            raise SettingsError(
                f"MEGATRON_PATCH_ACCEPT: {patch.id}@{digest} is not the source of any target of "
                f"the patch; found {there}. Take it out, or look at what "
                "`megatron-patch check` prints now"
            )
