"""Compare source with the fingerprints of a record. Nothing is imported or executed."""

from __future__ import annotations

import ast
import functools
import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from . import fingerprint, rewrite
from .errors import RewriteError, SettingsError, TargetError
from .fingerprint import Definition, FunctionNode
from .model import Add, Edit, Family, Patch, Replace, State, Substitute, Target, is_condition
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

    Where the source is not known, ``misses`` are those against the ``closest`` family. ``proof``
    are the targets that tell source which has the change already.
    """

    state: State
    reason: str
    family: Family | None = None
    misses: tuple[Miss, ...] = ()
    closest: Family | None = None
    proof: tuple[str, ...] = ()


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
    read = functools.cache(read)
    find = functools.cache(functools.partial(find_definition, read=read))
    try:
        _check_accepted(patch, find, accepted)
        if find(patch.target) is None:
            return Verdict(State.NOT_APPLICABLE, f"{patch.target} does not exist in this release")
        for known in patch.upstreamed:
            found = find(known.target)
            if found is not None and found.digest == known.digest:
                reason = f"{known.target} is that of {known.releases}"
                return Verdict(State.UPSTREAMED, reason, proof=(known.target,))
        for known in patch.unaffected:
            found = find(known.target)
            if found is not None and found.digest == known.digest:
                reason = f"{known.target} is that of {known.releases}, which needs no patch"
                return Verdict(State.NOT_APPLICABLE, reason)
        candidates: list[Candidate] = []
        for family in patch.families:
            misses = tuple(_misses(family, find))
            if not misses:
                if _is_made_of_helpers(family) and _has_helpers(family, read):
                    return _verdict_on_made(family)
                return Verdict(State.PENDING, f"source of {family.releases}", family)
            candidates.append((family, misses))
        if not candidates:
            return Verdict(State.DRIFTED, f"{patch.target}: no known source")
        verdict = _verdict_below_edits(patch, find, read, series) if series else None
        if verdict is not None:
            return verdict
        return _verdict_of_unknown(patch, _closest(candidates, read), find, accepted)
    except SettingsError:
        raise
    except (SyntaxError, UnicodeError) as error:
        return Verdict(State.DRIFTED, f"{patch.target}: the source does not parse: {error}")
    except TargetError as error:
        return Verdict(State.DRIFTED, str(error))
    except ValueError as error:  # such as a number with too many digits to be written down
        return Verdict(State.DRIFTED, f"{patch.target}: the source cannot be judged: {error}")
    except (RecursionError, MemoryError) as error:
        # Not its message: all ranks have to say the same, and where it came up is chance.
        why = f"nested too deeply for what is left of the stack ({type(error).__name__})"
        return Verdict(State.DRIFTED, f"{patch.target}: the source cannot be judged: it is {why}")


@contextmanager
def trees_kept() -> Iterator[None]:
    """Judge several patches inside: what one has read is there for the next, and gone at the end.

    The garbage collector rests meanwhile. The trees are no garbage, and to search them for some
    takes up to half as long as all the rest.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        fingerprint.forget()
        _digests_below.cache_clear()
        if collecting:
            gc.enable()


def find_definition(target: str, read: Reader) -> Definition | None:
    """The definition of ``module:Class.method``, ``None`` if there is no such thing."""
    parsed = Target.parse(target)
    text = read(parsed.module)
    return None if text is None else fingerprint.locate(parsed.module, text, parsed.qualname)


Finder = Callable[[str], "Definition | None"]
#: A family, and where the source is not its own.
Candidate = tuple[Family, tuple[Miss, ...]]


def _misses(family: Family, find: Finder) -> Iterator[Miss]:
    for edit in family.edits:
        if not isinstance(edit, Add):
            found = find(edit.target)
            if found is None or found.digest != edit.digest:
                yield Miss(edit, found)


def _closest(candidates: Sequence[Candidate], read: Reader) -> list[Candidate]:
    """The family that the source comes closest to, and those that are as close in other targets.

    By the modules that are there and by the targets that match; among equals, by what is there and
    what the edits fit.
    """

    def coarse(candidate: Candidate) -> tuple[int, int]:
        family, misses = candidate
        modules = [read(Target.parse(miss.edit.target).module) for miss in misses]
        return modules.count(None), len(misses) - len(family.edits)

    def fine(candidate: Candidate) -> tuple[int, ...]:
        misses = candidate[1]
        absent = sum(miss.definition is None for miss in misses)
        unfit = sum(miss.anchor is not None for miss in misses)
        return *coarse(candidate), absent, unfit, len(misses)

    found = [min(candidates, key=fine)]
    targets = {miss.edit.target for miss in found[0][1]}
    for candidate in candidates:
        others = {miss.edit.target for miss in candidate[1]}
        if coarse(candidate) == coarse(found[0]) and not others & targets:
            found.append(candidate)
            targets |= others
    return found


def _verdict_of_unknown(
    patch: Patch, closest: Sequence[Candidate], find: Finder, accepted: Collection[str]
) -> Verdict:
    family, misses = closest[0]
    # Several edits of one target miss it alike.
    reasons = [
        f"{'; '.join(dict.fromkeys(map(str, missed)))} (source of {known.releases})"
        for known, missed in closest
    ]
    if any(miss.definition is None for miss in misses):
        # The source is rather like one that needs no patch, which another target tells.
        others = dict.fromkeys(known.target for known in (*patch.upstreamed, *patch.unaffected))
        for target in others:
            found = find(target)
            digest = f"found {found.digest}" if found else "not found"
            reasons.append(f"{target}: {digest}, which is not known to need no patch")
    reason = "; or ".join(reasons)
    if not all(miss.found in accepted for miss in misses):
        return Verdict(State.DRIFTED, f"unknown source: {reason}", None, misses, family)
    why = why_not(family, find)
    if why is not None:
        return Verdict(State.DRIFTED, f"accepted source, but {why}", None, misses, family)
    return Verdict(State.PENDING, f"accepted source: {reason}", family, misses)


#: The digests of a target without edits of the series, and the ids of the patches left out.
Below = Mapping[str, frozenset[str]]


def _verdict_below_edits(
    patch: Patch, find: Finder, read: Reader, series: Sequence[Patch]
) -> Verdict | None:
    """The verdict if the source is known but for edits of the series that are made in it."""

    @functools.cache
    def below(target: str) -> Below:
        found = find(target)
        return _digests_below(found, target, tuple(series)) if found else {}

    states = {State.UPSTREAMED: patch.upstreamed, State.NOT_APPLICABLE: patch.unaffected}
    for state, sources in states.items():
        for known in sources:
            if patch.id not in below(known.target).get(known.digest, {patch.id}):
                reason = f"{known.target} is that of {known.releases}, below other patches"
                return Verdict(state, reason, proof=(known.target,) * (state is State.UPSTREAMED))
    for family in patch.families:
        edits = [edit for edit in family.edits if not isinstance(edit, Add)]
        if not all(edit.digest in below(edit.target) for edit in edits):
            continue
        made = [(edit, below(edit.target)[edit.digest]) for edit in edits if not is_condition(edit)]
        if all(patch.id in ids for _, ids in made) and _has_helpers(family, read):
            return _verdict_on_made(family)
        if made and all(patch.id in ids for _, ids in made):
            continue
        if not any(patch.id in ids or (ids and isinstance(edit, Replace)) for edit, ids in made):
            # A whole method in the place of one with edits of others would take these away.
            reason = f"source of {family.releases}, with other patches of the series made in it"
            return Verdict(State.PENDING, reason, family)
    return None


@functools.lru_cache(maxsize=256)  # several patches look at the same targets
def _digests_below(definition: Definition, target: str, series: tuple[Patch, ...]) -> Below:
    found: dict[str, frozenset[str]] = {definition.digest: frozenset()}
    # All that is possible, in any order: who makes the patches one by one need not keep to that of
    # the series, and code that one of them would have put there may have been there before.
    todo = [(definition.node, found[definition.digest])]
    for node, ids in todo:
        for other in series:
            for family in other.families if other.id not in ids else ():
                edits = [e for e in family.edits if e.target == target and not isinstance(e, Add)]
                original = rewrite.undone(node, edits) if edits else None
                if isinstance(original, str):
                    found.setdefault(original, ids | {other.id})
                elif original and (digest := fingerprint.digest(original)) not in found:
                    found[digest] = ids | {other.id}
                    todo.append((original, found[digest]))
    return found


def _verdict_on_made(family: Family) -> Verdict:
    reason = f"source of {family.releases}, with this patch made in it"
    proof = dict.fromkeys(
        edit.target
        for edit in family.edits
        # A helper that is no function has no code to prove.
        if not isinstance(edit, Add) or isinstance(ast.parse(edit.source).body[0], FunctionNode)
    )
    return Verdict(State.UPSTREAMED, reason, proof=tuple(proof))


def _is_made_of_helpers(family: Family) -> bool:
    """Whether the family adds something, and changes nothing that is there."""
    edits = [edit for edit in family.edits if not is_condition(edit)]
    return bool(edits) and all(isinstance(edit, Add) for edit in edits)


def _has_helpers(family: Family, read: Reader) -> bool:
    """Whether the source has all helpers of the family as they are ours."""
    return all(_is_there(edit, read) for edit in family.edits if isinstance(edit, Add))


def _is_there(helper: Add, read: Reader) -> bool:
    """Whether the source has the helper as it is ours."""
    target = Target.parse(helper.target)
    body: list[ast.stmt] = ast.parse(read(target.module) or "").body
    for scope in filter(None, target.scope.split(".")):
        classes = [n for n in body if isinstance(n, ast.ClassDef) and n.name == scope]
        body = classes[0].body if classes else []
    (wanted,) = ast.parse(helper.source).body
    digest = fingerprint.digest(wanted)
    return any(fingerprint.digest(n) == digest for n in body if type(n) is type(wanted))


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
