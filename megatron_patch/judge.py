"""Compare source with what is known of it. Nothing is imported or executed."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from . import fingerprint, recognising, rewrite
from .errors import RewriteError, SettingsError, TargetError
from .fingerprint import Definition
from .ledger import sources_of
from .model import (
    HAS_IT,
    NEEDS_NONE,
    Add,
    Before,
    Judgement,
    Patch,
    Requires,
    Source,
    Substitute,
    Target,
    Variant,
    is_known_by_digest,
)
from .sources import keep_texts, read_source

#: Gives a module's source text, or ``None`` for a module that does not exist.
Reader = Callable[[str], "str | None"]
#: Gives the definition of a target, ``None`` if there is none.
Finder = Callable[[str], "Definition | None"]


#: What an independent hook needs, in words.
ANY_METHOD = "a plain method with the hook's parameter, and not yet with the hook"


@dataclass(frozen=True)
class Miss:
    """A target whose source is not the one that a variant was proved on."""

    target: str
    expected: str | None  #: its digest; ``None`` for a method that only has to be there
    definition: Definition | None
    substitutes: tuple[Substitute, ...] = ()  #: those of the variant that are to be made in it

    @property
    def found(self) -> str | None:
        """The digest of what is there, ``None`` if nothing is."""
        return None if self.definition is None else self.definition.digest

    @property
    def anchors(self) -> tuple[str, ...]:
        """What is wrong with the code that each ``Substitute`` looks for, if something is."""
        found = []
        for edit in self.substitutes if self.definition is not None else ():
            assert self.definition is not None
            count = rewrite.occurrences(self.definition, edit)
            times = "is not there" if count == 0 else f"is there {count} times"
            if count != 1:
                found.append(f"`{rewrite.as_written(edit.find)}` {times}; expected once")
        return tuple(found)

    def __str__(self) -> str:
        found = f"found {self.found}" if self.found else "not found"
        return f"{self.target}: expected {self.expected or ANY_METHOD}, {found}"


@dataclass(frozen=True)
class Verdict:
    """What the source says of a patch: ``variant`` is set when, and only when, it applies.

    Where the source is not known, ``misses`` are those against the ``closest`` variant. ``proof``
    are the targets that tell source which has the change already.
    """

    judgement: Judgement
    reason: str
    variant: Variant | None = None
    misses: tuple[Miss, ...] = ()
    closest: Variant | None = None
    proof: tuple[str, ...] = ()


def judge(
    patch: Patch,
    read: Reader = read_source,
    accepted: Collection[str] = frozenset(),
    series: Sequence[Patch] = (),
) -> Verdict:
    """What the source that ``read`` gives means for ``patch``.

    ``accepted`` are digests of source that is to be taken for that of the closest variant. Raises
    ``SettingsError`` when one of them is not the digest of any target of the patch, and
    ``LedgerError`` when it is not known what source is. ``series`` are patches, ``patch`` among
    them, that may be in the source already, put there by ``megatron-patch apply`` or as exported
    patches.
    """
    read = functools.cache(read)
    find = functools.cache(functools.partial(find_definition, read=read))
    try:
        _check_accepted(patch, find, accepted)
        if find(patch.target) is None:
            reason = f"{patch.target} does not exist in this release"
            return Verdict(Judgement.NOT_APPLICABLE, reason)
        known = sources_of(patch)
        for source in known:
            if source.proved in TOLD and not _differences(source, find):
                return _verdict_on_told(source)
        candidates: list[Candidate] = []
        for source in known:
            if source.proved in TOLD:
                continue
            variant = variant_of(patch, source)
            misses = tuple(_misses(variant, source, find))
            if not misses:
                if recognising.is_made_of_helpers(variant) and recognising.has_helpers(
                    variant, read
                ):
                    return _verdict_on_made(variant, source)
                reason = f"source of {source.releases}"
                return Verdict(Judgement.APPLICABLE, reason, variant)
            candidates.append(Candidate(variant, source, misses))
        if not candidates:
            return Verdict(Judgement.DRIFTED, f"{patch.target}: no known source")
        verdict = _verdict_below_edits(patch, known, find, read, series) if series else None
        if verdict is not None:
            return verdict
        return _verdict_of_unknown(patch, _closest(candidates, read), find, accepted)
    except SettingsError:
        raise
    except (SyntaxError, UnicodeError) as error:
        reason = f"{patch.target}: the source does not parse: {error}"
    except TargetError as error:
        reason = str(error)
    except ValueError as error:  # such as a number with too many digits to be written down
        reason = f"{patch.target}: the source cannot be judged: {error}"
    except (RecursionError, MemoryError) as error:
        # Not its message: all ranks have to say the same, and where it came up is chance.
        why = f"nested too deeply for what is left of the stack ({type(error).__name__})"
        reason = f"{patch.target}: the source cannot be judged: it is {why}"
    return Verdict(Judgement.DRIFTED, reason)


#: What needs no edits, and what that means for a patch.
TOLD = {HAS_IT: Judgement.UPSTREAMED, NEEDS_NONE: Judgement.NOT_APPLICABLE}


def variant_of(patch: Patch, source: Source) -> Variant:
    """The variant that ``source`` needs.

    Raises ``ValueError`` if the record has none so named, or if it says nothing of a target that
    has to be known.
    """
    for variant in patch.variants:
        if variant.name == source.proved:
            digests = dict(source.digests)
            for edit in variant.edits:
                if is_known_by_digest(edit) and edit.target not in digests:
                    raise ValueError(
                        f"{source.releases} is known without a digest of {edit.target}"
                    )
            return variant
    names = ", ".join(variant.name for variant in patch.variants)
    raise ValueError(f"{patch.id} has no variant {source.proved!r}; expected one of {names}")


@contextmanager
def trees_kept() -> Iterator[None]:
    """Judge several patches inside: what one has read is there for the next, and gone at the end.

    The garbage collector rests meanwhile. The trees are no garbage, and to search them for some
    takes up to half as long as all the rest.
    """
    collecting = gc.isenabled()
    gc.disable()
    keep_texts(True)
    try:
        yield
    finally:
        keep_texts(False)
        fingerprint.forget()
        recognising.forget()
        if collecting:
            gc.enable()


def find_definition(target: str, read: Reader) -> Definition | None:
    """The definition of ``module:Class.method``, ``None`` if there is no such thing."""
    parsed = Target.parse(target)
    text = read(parsed.module)
    return None if text is None else fingerprint.locate(parsed.module, text, parsed.qualname)


@dataclass(frozen=True)
class Candidate:
    """Source that is known, what it needs, and where the source at hand is not that."""

    variant: Variant
    source: Source
    misses: tuple[Miss, ...]


def _differences(source: Source, find: Finder) -> dict[str, str]:
    """The targets that are not as in ``source``, and the digests that they have there."""
    return {
        target: digest
        for target, digest in source.digests
        if (found := find(target)) is None or found.digest != digest
    }


def _misses(variant: Variant, source: Source, find: Finder) -> Iterator[Miss]:
    for target, expected in _differences(source, find).items():
        edits = (edit for edit in variant.edits if edit.target == target)
        substitutes = tuple(edit for edit in edits if isinstance(edit, Substitute))
        yield Miss(target, expected, find(target), substitutes)
    for edit in _independent_hooks(variant):
        found = find(edit.target)
        # Where the hook is made already, something of the patch may be made already.
        if found is None or not _is_taken(edit, find) or rewrite.undone(found.node, [edit]):
            yield Miss(edit.target, None, found)


def _independent_hooks(variant: Variant) -> list[Before]:
    return [edit for edit in variant.edits if isinstance(edit, Before) and edit.independent]


def _is_taken(hook: Before, find: Finder) -> bool:
    found = find(hook.target)
    return found is not None and rewrite.takes(found, hook)


def _verdict_on_told(source: Source, below: str = "") -> Verdict:
    targets = tuple(target for target, _ in source.digests)
    reason = f"{', '.join(targets)} is that of {source.releases}{below}"
    if source.proved == NEEDS_NONE:
        return Verdict(Judgement.NOT_APPLICABLE, f"{reason}, which needs no patch")
    return Verdict(Judgement.UPSTREAMED, reason, proof=targets)


def _verdict_on_made(variant: Variant, source: Source) -> Verdict:
    reason = f"source of {source.releases}, with this patch made in it"
    return Verdict(Judgement.UPSTREAMED, reason, proof=recognising.provable(variant))


def _closest(candidates: Sequence[Candidate], read: Reader) -> list[Candidate]:
    """What the source comes closest to, and what is as close in other targets.

    By the modules that are there and by the targets that match; among equals, by what is there and
    what the edits fit.
    """

    def coarse(candidate: Candidate) -> tuple[int, int]:
        misses = candidate.misses
        modules = [read(Target.parse(miss.target).module) for miss in misses]
        return modules.count(None), len(misses) - len(candidate.source.digests)

    def fine(candidate: Candidate) -> tuple[int, ...]:
        misses = candidate.misses
        absent = sum(miss.definition is None for miss in misses)
        unfit = sum(len(miss.anchors) for miss in misses)
        return *coarse(candidate), absent, unfit, len(misses)

    found = [min(candidates, key=fine)]
    targets = {miss.target for miss in found[0].misses}
    for candidate in candidates:
        others = {miss.target for miss in candidate.misses}
        if coarse(candidate) == coarse(found[0]) and not others & targets:
            found.append(candidate)
            targets |= others
    return found


def _verdict_of_unknown(
    patch: Patch, closest: Sequence[Candidate], find: Finder, accepted: Collection[str]
) -> Verdict:
    variant, misses = closest[0].variant, closest[0].misses
    reasons = [
        f"{'; '.join(map(str, other.misses))} (source of {other.source.releases})"
        for other in closest
    ]
    if any(miss.definition is None for miss in misses):
        # The source is rather like one that needs no patch, which another target tells.
        for target in patch.told_by:
            found = find(target)
            digest = f"found {found.digest}" if found else "not found"
            reasons.append(f"{target}: {digest}, which is not known to need no patch")
    reason = "; or ".join(reasons)
    drifted = functools.partial(Verdict, Judgement.DRIFTED, misses=misses, closest=variant)
    if not all(miss.expected and miss.found in accepted for miss in misses):
        return drifted(f"unknown source: {reason}")
    why = why_not(variant, find)
    if why is not None:
        return drifted(f"accepted source, but {why}")
    return Verdict(Judgement.APPLICABLE, f"accepted source: {reason}", variant, misses)


def _verdict_below_edits(
    patch: Patch, known: Sequence[Source], find: Finder, read: Reader, series: Sequence[Patch]
) -> Verdict | None:
    """The verdict if the source is known but for edits of the series that are made in it."""
    below = functools.cache(functools.partial(recognising.below, find=find, series=tuple(series)))
    for source in known:
        if source.proved in TOLD and all(
            patch.id not in below(target).get(digest, {patch.id})
            for target, digest in source.digests
        ):
            return _verdict_on_told(source, ", below other patches")
    for source in known:
        if source.proved in TOLD:
            continue
        variant = variant_of(patch, source)
        if not all(_is_taken(hook, find) for hook in _independent_hooks(variant)):
            continue
        found = recognising.made(patch, variant, source, below, read)
        if found is recognising.Made.ALL:
            return _verdict_on_made(variant, source)
        if found is recognising.Made.NONE:
            reason = f"source of {source.releases}, with other patches of the series made in it"
            return Verdict(Judgement.APPLICABLE, reason, variant)
    return None


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


def _check_accepted(patch: Patch, find: Finder, accepted: Collection[str]) -> None:
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
