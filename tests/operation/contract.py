"""The rules for each record of the series, as functions that return what is wrong with one."""

from __future__ import annotations

import ast
import datetime
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from megatron_patch.edits import (
    METAVARIABLE,
    Add,
    Edit,
    Requires,
    Substitute,
    Target,
    is_known_by_digest,
)
from megatron_patch.hunks import Hunks
from megatron_patch.judge import judge
from megatron_patch.ledger import sources_of
from megatron_patch.model import HAS_IT, NEEDS_NONE, Patch, Source
from megatron_patch.unknown import why_not
from megatron_patch.verdicts import Reader, Verdict, find_definition
from tools.starting.stubs import FILL

REPORTS = Path(__file__).parents[2] / "docs" / "upstream"
TOLD = (HAS_IT, NEEDS_NONE)


def of_names(patch: Patch, module: str, constant: str) -> Iterator[str]:
    """Of the constant ``patch`` in ``module``: where it stands says what and whose it is."""
    name = patch.id.replace("-", "_")
    if module.rpartition(".")[2] != name:
        yield f"{patch.id} is in {module}; expected {name}.py"
    if constant != name.upper():
        yield f"{patch.id} is the constant {constant}; expected {name.upper()}"
    folder = "ours" if patch.upstream_pr is None else "upstream"
    if module.split(".")[-2] != folder:
        yield f"{patch.id} is in {module}; expected it in the folder {folder}"


def of_fields(patch: Patch, reports: Path = REPORTS) -> Iterator[str]:
    """All fields on upstream's change are filled in, or none is and there is a report."""
    upstream = (patch.upstream_pr, patch.upstream_commit, patch.upstream_date, patch.fixed_in)
    if patch.upstream_pr is None:
        if any(value is not None for value in upstream):
            yield f"{patch.id} is ours, and says {upstream} of upstream"
        report = reports / f"{patch.id}.md"
        if not report.is_file():
            yield f"{patch.id} is ours, and there is no docs/upstream/{patch.id}.md"
        elif FILL in report.read_text(encoding="utf-8"):
            yield f"{report} is to be filled in"
    elif None in upstream:
        yield f"{patch.id} is upstream's, and says {upstream} of it"
    elif patch.upstream_pr < 1:
        yield f"{patch.id}: {patch.upstream_pr} is no pull request"
    elif not re.fullmatch("[0-9a-f]{40}", patch.upstream_commit or ""):
        yield f"{patch.id}: {patch.upstream_commit!r} is no commit"
    for date in filter(None, (patch.upstream_date, patch.updated)):
        if not _is_date(date):
            yield f"{patch.id}: {date!r} is no date; expected YYYY-MM-DD"
    for name in ("summary", "symptom", "outcome", "removal"):
        if not getattr(patch, name).strip():
            yield f"{patch.id} has no {name}"
    for name, value in patch._asdict().items():
        if isinstance(value, str) and FILL in value:
            yield f"{patch.id}: {name} is to be filled in: {value!r}"


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def of_releases(patch: Patch, pins: Iterable[str]) -> Iterator[str]:
    """The fix is in a release that is newer than all that the patch is for."""
    specifier = _specifier(patch)
    if specifier is None:
        yield f"{patch.id}: {patch.releases!r} is no version specifier"
        return
    needy = [pin for pin in map(Version, pins) if pin in specifier]
    if not needy:
        yield f"{patch.id} is for {patch.releases}, which is none of the pins"
    elif patch.fixed_in is not None and Version(patch.fixed_in) <= max(needy):
        yield f"{patch.id} is for {max(needy)}, and fixed in {patch.fixed_in}"


def _specifier(patch: Patch) -> SpecifierSet | None:
    try:
        return SpecifierSet(patch.releases)
    except InvalidSpecifier:
        return None


def of_ledger(patch: Patch) -> Iterator[str]:
    """Each entry of the ledger names a variant of the record or none, and digests to know it by."""
    needed = {
        variant.name: {edit.target for edit in variant.edits if is_known_by_digest(edit)}
        for variant in patch.variants
    }
    if len(needed) != len(patch.variants):
        yield f"{patch.id} has two variants of one name"
    if len({variant.edits for variant in patch.variants}) != len(patch.variants):
        yield f"{patch.id} has two variants with the same edits"
    if needed.keys() & {*TOLD}:
        yield f"{patch.id} has a variant that is named like source without one"
    sources = sources_of(patch)
    for name in needed.keys() - {source.proved for source in sources}:
        yield f"{patch.id}: nothing is known to need variant {name!r}"
    for source in sources:
        targets = {target for target, _ in source.digests}
        where = f"{patch.id}, {source.releases}"
        if source.proved in TOLD:
            tells = patch.told_by or (patch.target,)
            if not targets or targets - {*tells}:
                yield f"{where}: told by {sorted(targets)}; the record says {tells}"
        elif source.proved not in needed:
            yield f"{where}: proved is {source.proved!r}; expected one of {sorted(needed)}"
        elif targets != needed[source.proved]:
            other = sorted(targets ^ needed[source.proved])
            yield f"{where}: the digests and the edits of {source.proved!r} differ in {other}"
        yield from (f"{where}: {problem}" for problem in _of_source(source))
    yield from _contradictions(patch, sources)


def _of_source(source: Source) -> Iterator[str]:
    if len(dict(source.digests)) != len(source.digests):
        yield "a target has two digests"
    for target, digest in source.digests:
        if not re.fullmatch("[0-9a-f]{16}", digest):
            yield f"{digest!r} is no digest; expected 16 hexadecimal digits"
        Target.parse(target)
    if not source.releases.strip():
        yield "it does not say where the source is found"
    if not re.fullmatch("([0-9a-f]{40})?", source.commit):
        yield f"{source.commit!r} is no commit"


def _contradictions(patch: Patch, sources: tuple[Source, ...]) -> Iterator[str]:
    for index, one in enumerate(sources):
        for other in sources[index + 1 :]:
            both = {*TOLD} & {one.proved, other.proved}
            if both and one.proved != other.proved and {*one.digests} <= {*other.digests}:
                yield (
                    f"{patch.id}: source of {other.releases} {one.proved}, as that of "
                    f"{one.releases}, and is known for {other.proved!r} too"
                )


def of_hunks(patch: Patch, hunks: Hunks | None) -> Iterator[str]:
    """The edits parse; metavariables are names, on both sides; hunks are of variants there are."""
    names = {variant.name for variant in patch.variants}
    for hunk in hunks.hunks if hunks else ():
        if set(hunk.variants) - names:
            yield f"{patch.id}: a hunk of {hunk.edit.target} is of {hunk.variants}; not of {names}"
    for variant in patch.variants:
        if FILL in variant.name:
            yield f"{patch.id}: a variant is to be named"
        for edit in variant.edits:
            where = f"{patch.id}, {variant.name}, {edit.target}"
            yield from (f"{where}: {problem}" for problem in _of_edit(edit))


def _of_edit(edit: Edit) -> Iterator[str]:
    if isinstance(edit, Requires) and not edit.why.strip():
        yield "the condition does not say why"
    if isinstance(edit, Add):
        body = ast.parse(edit.source).body
        names = [getattr(node, "name", None) or _assigned(node) for node in body]
        if names != [Target.parse(edit.target).name]:
            yield f"it defines {names}"
        if METAVARIABLE in edit.source:
            yield "a metavariable is not code that can be added"
    if isinstance(edit, Substitute):
        if FILL in edit.find + edit.put:
            yield "the hunk is to be filled in"
        find, put = _metavariables(edit.find), _metavariables(edit.put)
        if find != put and edit.put.strip():
            yield f"metavariables {sorted(find ^ put)} are on one side only"
        for side in (edit.find, edit.put):
            if len(re.findall(METAVARIABLE, side)) != len(list(_places_of(side))):
                yield "a metavariable is not a name of its own"


def _assigned(node: ast.stmt) -> str | None:
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return targets[0].id if isinstance(targets[0], ast.Name) else None


def _places_of(side: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(side)):
        if isinstance(node, ast.Name) and node.id.startswith(METAVARIABLE):
            yield node.id


def _metavariables(side: str) -> set[str]:
    return set(_places_of(side))


def expected(patch: Patch, release: str) -> Verdict:
    """What the record says of a release: it needs the patch, has it, or has nothing to patch."""
    version = Version(release)
    if version in (_specifier(patch) or ()):
        return Verdict.APPLICABLE
    is_fixed = patch.fixed_in is not None and Version(patch.fixed_in) <= version
    return Verdict.UPSTREAMED if is_fixed else Verdict.NOT_APPLICABLE


def on_release(
    patch: Patch, release: str, read: Reader, series: tuple[Patch, ...] = ()
) -> Iterator[str]:
    """The source of a release says of the patch what its record says, and has each hunk once."""
    judgement = judge(patch, read, series=series)
    if judgement.verdict is not expected(patch, release):
        yield (
            f"{patch.id} is {judgement.verdict} on {release} ({judgement.reason}); the record says "
            f"{patch.releases}, fixed in {patch.fixed_in}: {expected(patch, release)}"
        )
    there = {t: found.digest for t in patch.told_by if (found := find_definition(t, read))}
    for source in sources_of(patch):
        met = all(there.get(target) == digest for target, digest in source.digests)
        if source.proved in TOLD and met and len(source.digests) < len(there):
            yield f"{patch.id} on {release}: told by less than {sorted(there)}, which are all there"
    if judgement.variant is None:
        return
    why = why_not(judgement.variant, lambda target: find_definition(target, read))
    if why is not None:
        yield f"{patch.id} on {release}: {why}"
    if not any(edit for edit in judgement.variant.edits if not isinstance(edit, Requires)):
        yield f"{patch.id} on {release}: the variant {judgement.variant.name!r} changes nothing"
