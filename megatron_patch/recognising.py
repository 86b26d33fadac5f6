"""Recognise the edits of the series in source: somebody may have made them there."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from . import fingerprint, undoing
from .definitions import Definition, body_of, bound_names, statements_of
from .edits import Add, Replace, Target, changes_code, is_known_by_digest
from .fingerprint import FunctionNode
from .ledger import sources_of
from .matching import landmark
from .model import Patch, Source, Variant
from .substituting import rows_with

#: The digests of a target without edits of the series, and the ids of the patches left out.
Below = Mapping[str, frozenset[str]]


class Made(Enum):
    """How much of a patch is in source that is known but for edits of the series."""

    ALL = "all of it"
    NONE = "nothing of it"


def made(
    patch: Patch,
    variant: Variant,
    source: Source,
    below: Callable[[str], Below],
    read: Callable[[str], str | None],
) -> Made | None:
    """What of ``patch`` is in source that is ``source`` but for edits.

    ``None`` if it is not such source, or has a part of the patch, or cannot be given the patch
    without what others have put there.
    """
    if not all(digest in below(target) for target, digest in source.digests):
        return None
    expected = dict(source.digests)
    edits = [edit for edit in variant.edits if changes_code(edit) and not isinstance(edit, Add)]
    left_out = [
        below(edit.target)[expected[edit.target]]
        if is_known_by_digest(edit)
        else frozenset().union(*below(edit.target).values())
        for edit in edits
    ]
    if all(patch.id in ids for ids in left_out):
        if has_helpers(variant, read):
            return Made.ALL
        return None if edits else Made.NONE
    for edit, ids in zip(edits, left_out, strict=True):
        # A whole method in the place of one with edits of others would take these away.
        if patch.id in ids or (ids and isinstance(edit, Replace)):
            return None
    return Made.NONE


def below(
    target: str, find: Callable[[str], Definition | None], series: tuple[Patch, ...]
) -> Below:
    """What the target may have been before edits of the series were made in it."""
    found = find(target)
    return _digests_below(found, target, series) if found else {}


@functools.lru_cache(maxsize=256)  # several patches look at the same targets
def _digests_below(definition: Definition, target: str, series: tuple[Patch, ...]) -> Below:
    # All that is possible, in any order: somebody who makes the patches one by one need not keep to
    # the order of the series, and code that one of them would have put there may have been there
    # before.
    steps: dict[str, list[_Step]] = {definition.digest: []}
    todo = [(definition.node, definition.digest, frozenset[str]())]
    forms = functools.cache(lambda: fingerprint.forms_below(definition.node))
    rows = functools.cache(lambda code: rows_with(definition, landmark(code)))
    for node, above, ids in todo:
        for other in series:
            for variant in other.variants if other.id not in ids else ():
                edits = [
                    edit
                    for edit in variant.edits
                    if edit.target == target and changes_code(edit) and not isinstance(edit, Add)
                ]
                original = undoing.undone(node, edits, rows) if edits else None
                step = _Step(above, other, variant)
                if original is undoing.Gone.WHOLE:
                    for source in sources_of(other):
                        if source.proved == variant.name:
                            steps.setdefault(dict(source.digests)[target], []).append(step)
                elif isinstance(original, FunctionNode):
                    digest = fingerprint.digest(original, forms())
                    if digest not in steps:
                        todo.append((original, digest, ids | {other.id}))
                    steps.setdefault(digest, []).append(step)
    found = {digest: _made_on(digest, target, steps, definition.digest) for digest in steps}
    return {digest: ids for digest, ids in found.items() if ids is not None}


class _Step(NamedTuple):
    """A patch that was taken out, and the digest of what it was taken out of."""

    above: str
    patch: Patch
    variant: Variant


def _made_on(
    digest: str, target: str, steps: Mapping[str, Sequence[_Step]], there: str
) -> frozenset[str] | None:
    """The ids of patches that make of ``digest`` what is ``there``, all of which such source gets.

    A patch that it does not get, as where upstream has the change, was not made there.
    """

    def above(below: str, ids: frozenset[str]) -> frozenset[str] | None:
        if below == there:
            return ids
        for step in steps[below]:
            if step.patch.id not in ids and any(
                source.proved == step.variant.name
                and dict(source.digests).get(target, digest) == digest
                for source in sources_of(step.patch)
            ):
                found = above(step.above, ids | {step.patch.id})
                if found is not None:
                    return found
        return None

    return above(digest, frozenset())


def forget() -> None:
    """Empty the cache, which is there because the next patch may look at the same source."""
    _digests_below.cache_clear()


def provable(variant: Variant) -> tuple[str, ...]:
    """The targets whose running code can be compared with the source; other helpers have none."""
    return tuple(
        dict.fromkeys(
            edit.target
            for edit in variant.edits
            if not isinstance(edit, Add) or isinstance(statements_of(edit.source)[0], FunctionNode)
        )
    )


def is_made_of_helpers(variant: Variant) -> bool:
    """Whether the variant adds something, and changes nothing that is there."""
    added = [edit for edit in variant.edits if isinstance(edit, Add)]
    others = (edit for edit in variant.edits if not isinstance(edit, Add))
    return bool(added) and not any(map(changes_code, others))


def has_helpers(variant: Variant, read: Callable[[str], str | None]) -> bool:
    """Whether the source has all helpers of the variant as they are ours."""
    return all(_is_there(edit, read) for edit in variant.edits if isinstance(edit, Add))


def is_taken(helper: Add, read: Callable[[str], str | None]) -> bool:
    """Whether the source binds the helper's name where it is to be put."""
    return Target.parse(helper.target).name in bound_names(body_around(helper, read))


def body_around(helper: Add, read: Callable[[str], str | None]) -> list[ast.stmt]:
    """The statements of the module or the class that the helper belongs to."""
    target = Target.parse(helper.target)
    body = body_of(read(target.module) or "")
    for scope in filter(None, target.scope.split(".")):
        classes = [n for n in body if isinstance(n, ast.ClassDef) and n.name == scope]
        body = classes[0].body if classes else []
    return body


def _is_there(helper: Add, read: Callable[[str], str | None]) -> bool:
    """Whether the source has the helper as it is ours."""
    target = Target.parse(helper.target)
    (wanted,) = statements_of(helper.source)
    start = "def " if isinstance(wanted, FunctionNode) else ""
    if start + target.name not in (read(target.module) or ""):
        return False  # nearly always, and no tree is needed
    body = body_around(helper, read)
    digest = fingerprint.digest(wanted)
    return any(fingerprint.digest(n) == digest for n in body if type(n) is type(wanted))
