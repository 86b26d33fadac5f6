"""Judge what source means for a patch. Nothing is imported or executed."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from . import definitions, names, recognising, substituting
from .edits import is_known_by_digest
from .errors import SettingsError, TargetError
from .ledger import sources_of
from .model import HAS_IT, NEEDS_NONE, Patch, Source, Variant
from .sources import keep_texts, read_source
from .unknown import (
    Candidate,
    check_accepted,
    closest_of,
    differences,
    independent_hooks,
    is_taken,
    judgement_of_unknown,
    misses_of,
)
from .verdicts import Finder, Judgement, Reader, Verdict, find_definition


def judge(
    patch: Patch,
    read: Reader = read_source,
    accepted: Collection[str] = frozenset(),
    series: Sequence[Patch] = (),
) -> Judgement:
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
        found = _judgement(patch, find, read, accepted, series)
        return _unless_names_lack(found, find, read)
    except SettingsError:
        raise
    except (SyntaxError, UnicodeError) as error:
        reason = f"{patch.target}: the source does not parse: {error}"
    except TargetError as error:
        reason = str(error)
    except ValueError as error:  # such as a number with too many digits to be written down
        reason = f"{patch.target}: the source cannot be judged: {error}"
    except (RecursionError, MemoryError) as error:
        # The message is left out: it depends on chance, and all ranks have to say the same.
        why = f"nested too deeply for what is left of the stack ({type(error).__name__})"
        reason = f"{patch.target}: the source cannot be judged: it is {why}"
    return Judgement(Verdict.DRIFTED, reason)


def _judgement(
    patch: Patch, find: Finder, read: Reader, accepted: Collection[str], series: Sequence[Patch]
) -> Judgement:
    check_accepted(patch, find, accepted)
    if find(patch.target) is None:
        reason = f"{patch.target} does not exist in this release"
        return Judgement(Verdict.NOT_APPLICABLE, reason)
    known = sources_of(patch)
    for source in known:
        if source.proved in TOLD and not differences(source, find):
            return _judgement_on_told(source)
    candidates: list[Candidate] = []
    for source in known:
        if source.proved in TOLD:
            continue
        variant = variant_of(patch, source)
        misses = tuple(misses_of(variant, source, find))
        if not misses:
            if recognising.is_made_of_helpers(variant) and recognising.has_helpers(variant, read):
                return _judgement_on_made(variant, source)
            reason = f"source of {source.releases}"
            return Judgement(Verdict.APPLICABLE, reason, variant)
        candidates.append(Candidate(variant, source, misses))
    if not candidates:
        return Judgement(Verdict.DRIFTED, f"{patch.target}: no known source")
    below = _judgement_below_edits(patch, known, find, read, series) if series else None
    if below is not None:
        return below
    return judgement_of_unknown(patch, closest_of(candidates, read), find, read, accepted)


#: What needs no edits, and what that means for a patch.
TOLD = {HAS_IT: Verdict.UPSTREAMED, NEEDS_NONE: Verdict.NOT_APPLICABLE}


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
    """A context for judging several patches: what one has read is kept for the next, until the end.

    The garbage collector is off meanwhile.
    """
    with definitions.no_search_for_garbage():
        keep_texts(True)
        try:
            yield
        finally:
            keep_texts(False)
            definitions.forget()
            names.forget()
            recognising.forget()
            substituting.forget()


def _judgement_on_told(source: Source, below: str = "") -> Judgement:
    targets = tuple(target for target, _ in source.digests)
    reason = f"{', '.join(targets)} is that of {source.releases}{below}"
    if source.proved == NEEDS_NONE:
        return Judgement(Verdict.NOT_APPLICABLE, f"{reason}, which needs no patch")
    return Judgement(Verdict.UPSTREAMED, reason, proof=targets)


def _judgement_on_made(variant: Variant, source: Source) -> Judgement:
    reason = f"source of {source.releases}, with this patch made in it"
    return Judgement(Verdict.UPSTREAMED, reason, proof=recognising.provable(variant))


def _judgement_below_edits(
    patch: Patch, known: Sequence[Source], find: Finder, read: Reader, series: Sequence[Patch]
) -> Judgement | None:
    """The judgement if the source is known but for edits of the series that are made in it."""
    below = functools.cache(functools.partial(recognising.below, find=find, series=tuple(series)))
    for source in known:
        if source.proved in TOLD and all(
            patch.id not in below(target).get(digest, {patch.id})
            for target, digest in source.digests
        ):
            return _judgement_on_told(source, ", below other patches")
    for source in known:
        if source.proved in TOLD:
            continue
        variant = variant_of(patch, source)
        if not all(is_taken(hook, find) for hook in independent_hooks(variant)):
            continue
        found = recognising.made(patch, variant, source, below, read)
        if found is recognising.Made.ALL:
            return _judgement_on_made(variant, source)
        if found is recognising.Made.NONE:
            reason = f"source of {source.releases}, with other patches of the series made in it"
            return Judgement(Verdict.APPLICABLE, reason, variant)
    return None


def _unless_names_lack(found: Judgement, find: Finder, read: Reader) -> Judgement:
    """The judgement, but drifted where the edits would use names that are not there."""
    lacking = [] if found.variant is None else names.lacking(found.variant, find, read)
    if not lacking:
        return found
    why = f"but the edits use {', '.join(lacking)}, and no such name is defined there"
    return Judgement(
        Verdict.DRIFTED, f"{found.reason}, {why}", misses=found.misses, closest=found.variant
    )
