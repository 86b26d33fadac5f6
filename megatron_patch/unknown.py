"""Compare source with what is known, and tell what unknown source comes closest to."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from . import recognising, rewrite, undoing
from .definitions import Definition
from .edits import Add, Before, Replace, Requires, Substitute, Target
from .errors import RewriteError, SettingsError
from .ledger import sources_of
from .model import Patch, Source, Variant
from .sources import megatron_version
from .verdicts import Finder, Judgement, Miss, Reader, Verdict


@dataclass(frozen=True)
class Candidate:
    """Source that is known, what it needs, and where the source at hand is not that."""

    variant: Variant
    source: Source
    misses: tuple[Miss, ...]


def differences(source: Source, find: Finder) -> dict[str, str]:
    """The targets that are not as in ``source``, and the digests that they have there."""
    return {
        target: digest
        for target, digest in source.digests
        if (found := find(target)) is None or found.digest != digest
    }


def misses_of(variant: Variant, source: Source, find: Finder) -> Iterator[Miss]:
    for target, expected in differences(source, find).items():
        edits = (edit for edit in variant.edits if edit.target == target)
        substitutes = tuple(edit for edit in edits if isinstance(edit, Substitute))
        yield Miss(target, expected, find(target), substitutes)
    for edit in independent_hooks(variant):
        found = find(edit.target)
        # Where the hook is there already, other parts of the patch may be there already.
        if found is None or not rewrite.takes(found, edit) or undoing.undone(found.node, [edit]):
            yield Miss(edit.target, None, found)


def independent_hooks(variant: Variant) -> list[Before]:
    return [edit for edit in variant.edits if isinstance(edit, Before) and edit.independent]


def is_taken(hook: Before, find: Finder) -> bool:
    found = find(hook.target)
    return found is not None and rewrite.takes(found, hook)


def judgement_of_unknown(
    patch: Patch,
    closest: Sequence[Candidate],
    find: Finder,
    read: Reader,
    accepted: Collection[str],
) -> Judgement:
    variant, misses = closest[0].variant, closest[0].misses
    reasons = [
        f"{'; '.join(map(str, other.misses))} (source of {other.source.releases})"
        for other in closest
    ]
    for target in _telling(patch, misses, find):
        found = find(target)
        digest = f"found {found.digest}" if found else "not found"
        reasons.append(f"{target}: {digest}, which is not known to need no patch")
    reason = "; or ".join(reasons)
    drifted = functools.partial(Judgement, Verdict.DRIFTED, misses=misses, closest=variant)
    if not all(miss.expected and miss.found in accepted for miss in misses):
        return drifted(f"unknown source: {reason}")
    why = already_made(variant, find, read) or why_not(variant, find)
    if why is not None:
        return drifted(f"accepted source, but {why}")
    return Judgement(Verdict.APPLICABLE, f"accepted source: {reason}", variant, misses)


def _telling(patch: Patch, misses: Sequence[Miss], find: Finder) -> Sequence[str]:
    """The targets that do not tell that the source needs no patch, where it is rather like that."""
    if any(miss.definition is None for miss in misses):
        return patch.told_by
    variants = {variant.name for variant in patch.variants}
    told = (source for source in sources_of(patch) if source.proved not in variants)
    differing = ((source, differences(source, find)) for source in told)
    near = (others for source, others in differing if len(others) < len(source.digests))
    return tuple(dict.fromkeys(target for others in near for target in others))


def closest_of(candidates: Sequence[Candidate], read: Reader) -> list[Candidate]:
    """What the source comes closest to, and what is as close in other targets.

    By the modules that are there and by the targets that match; among equals, by what is there and
    what the edits fit; then those of the release that the tree says it is.
    """

    def coarse(candidate: Candidate) -> tuple[int, int]:
        misses = candidate.misses
        modules = [read(Target.parse(miss.target).module) for miss in misses]
        return modules.count(None), len(misses) - len(candidate.source.digests)

    def absent(candidate: Candidate) -> int:
        return sum(miss.definition is None for miss in candidate.misses)

    version = megatron_version(read) or ""
    line = version.rpartition(".")[0] if version.count(".") > 1 else version

    def fine(candidate: Candidate) -> tuple[int, ...]:
        misses = candidate.misses
        # A replacement as a whole fits all source alike: that of the tree's own release is closer.
        elsewhere = f"{line}." not in candidate.source.releases
        return sum(len(miss.anchors) for miss in misses), len(misses), elsewhere

    best = min(map(coarse, candidates))
    near = [candidate for candidate in candidates if coarse(candidate) == best]
    least = min(map(absent, near))
    # What edits fit takes long to say, and decides among the rest alone.
    found = [min((candidate for candidate in near if absent(candidate) == least), key=fine)]
    targets = {miss.target for miss in found[0].misses}
    for candidate in near:
        others = {miss.target for miss in candidate.misses}
        if not others & targets:
            found.append(candidate)
            targets |= others
    return found


def why_not(variant: Variant, find: Finder) -> str | None:
    """Why the edits of ``variant`` do not fit the source, ``None`` if they do."""
    edited: dict[str, Definition] = {}
    try:
        for edit in variant.edits:
            if isinstance(edit, (Add, Requires)):
                continue
            definition = edited.get(edit.target) or find(edit.target)
            if definition is None:
                return f"{edit.target} is not found"
            edited[edit.target] = rewrite.edited(definition, edit)
    except RewriteError as error:
        return str(error)
    return None


def already_made(variant: Variant, find: Finder, read: Reader) -> str | None:
    """Which edit of ``variant`` is in the source and could be made there once more, in words.

    ``None`` if there is none: what takes other code away does not fit where it has been made.
    """
    for edit in variant.edits:
        if isinstance(edit, Add):
            if recognising.is_taken(edit, read):
                return f"{edit.target}: the name is taken; expected it to be free"
        elif isinstance(edit, (Before, Replace)) or (
            isinstance(edit, Substitute) and edit.find.strip() in edit.put
        ):
            found = find(edit.target)
            if found is not None and undoing.undone(found.node, [edit]) is not None:
                return f"{edit.target} has an edit of this patch already"
    return None


def check_accepted(patch: Patch, find: Finder, accepted: Collection[str]) -> None:
    if not accepted:
        return
    digests = {found.digest: target for target in patch.targets if (found := find(target))}
    for digest in accepted:
        if digest not in digests:
            there = ", ".join(f"{d} ({t})" for d, t in digests.items()) or "no target at all"
            raise SettingsError(
                f"MEGATRON_PATCH_ACCEPT: {patch.id}@{digest} is not the source of any target of "
                f"the patch; found {there}. Take it out, or look at what "
                "`megatron-patch check` prints now"
            )
