"""What ``megatron-patch check`` finds in a tree, for people and for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .edits import Target
from .folding import folded
from .judge import judge, trees_kept
from .ledger import sources_of
from .model import HAS_IT, NEEDS_NONE, Patch
from .settings import ACCEPT, RECORDS, SELECTION, Settings
from .source_tree import SourceTree
from .verdicts import ANY_METHOD, Judgement, Miss, Verdict


@dataclass(frozen=True)
class Drift:
    """One target whose source is not known."""

    target: str
    file: str | None  #: ``None`` when the tree has no such module
    line: int | None  #: of the definition, from 1; ``None`` when there is none
    found: str | None  #: digest of what is there
    expected: str | None  #: that of the closest known source; ``None`` where any method will do
    anchors: tuple[str, ...]  #: what is wrong with the code that each ``Substitute`` looks for

    @property
    def lines(self) -> tuple[str, str]:
        """Where it is, and what is there."""
        where = self.target if self.file is None else f"{self.file}:{self.line or 1}: {self.target}"
        found = f"digest {self.found}" if self.found else "is not there"
        return f"    {where}", f"        {found}, expected {self.expected or ANY_METHOD}"

    def __str__(self) -> str:
        return "\n".join((*self.lines, *(f"        {anchor}" for anchor in self.anchors)))


@dataclass(frozen=True)
class Finding:
    """What is to be told of one patch."""

    id: str
    verdict: Verdict
    reason: str
    drifts: tuple[Drift, ...]
    known: tuple[str, ...]  #: releases whose source is known
    accept: str | None  #: what would accept the source as it is; ``None`` when nothing would
    diff: str | None = None  #: where it is drifted, and was asked for, what to read
    off: str | None = None  #: why it is left out whatever the verdict; ``None`` where it is not

    def as_dict(self) -> dict[str, Any]:
        """The fields in a form that ``json.dumps`` takes; ``diff`` only where it was asked for."""
        return {
            name: value for name, value in asdict(self).items() if (name, value) != ("diff", None)
        }

    def __str__(self) -> str:
        head = f"{self.id}: {self.found}"
        if self.verdict is not Verdict.DRIFTED:
            return f"{head}\n    {self.reason}"
        lines = [head]
        drifts = [line for drift in self.drifts for line in str(drift).splitlines()]
        if self.diff is not None:  # which shows what is wrong with the code
            drifts = [line for drift in self.drifts for line in drift.lines]
        lines += drifts or [f"    {self.reason}"]
        lines.append(f"    known source: {'; '.join(self.known)}")
        if self.accept is not None:
            lines += [
                "    If you have looked at the code and the patch is right for it, accept it with",
                f"    MEGATRON_PATCH_ACCEPT={self.accept}",
            ]
        elif self.drifts:
            lines.append("    This source cannot be accepted: the patch does not fit it.")
        if self.diff is not None:
            lines = [*_for_terminal(lines), *self.explanation]
        return "\n".join(lines)

    @property
    def found(self) -> str:
        """The verdict in a few words, and why the patch is off if it is."""
        return f"{self.verdict}, but off ({self.off})" if self.off else str(self.verdict)

    @property
    def explanation(self) -> list[str]:
        """The lines of ``diff``, and what to do next."""
        return [*(self.diff or "").splitlines(), *self._next_steps()]

    def _next_steps(self) -> list[str]:
        if self.accept is not None:
            return ["All edits fit. If nothing above changes what they rely on, accept the source."]
        return [
            "To go on: bring the code back to what the patch looks for; or give a record",
            f"with edits that fit, in {RECORDS}; or leave the patch out with",
            f"MEGATRON_PATCH=-{self.id}.",
        ]


def _for_terminal(lines: Iterable[str]) -> Iterator[str]:
    """Lines folded, but for what is to be copied as it is."""
    for line in lines:
        margin = line[: len(line) - len(line.lstrip())]
        if ACCEPT in line:
            yield line
        else:
            yield from folded(line, f"{margin}  ")


NOTES = {HAS_IT: " (upstreamed)", NEEDS_NONE: " (needs no patch)"}


def inspect(
    patch: Patch,
    tree: SourceTree,
    accepted: Collection[str] = frozenset(),
    series: Sequence[Patch] = (),
    explain: Callable[[Judgement, SourceTree], str] | None = None,
    off: str | None = None,
) -> Finding:
    """Judge ``patch`` on ``tree``; ``explain`` says more where it is drifted.

    ``off`` says why it is left out of what is patched, if it is.

    Raises ``SettingsError`` as :func:`~.judge.judge` does.
    """
    judgement = judge(patch, tree.read, accepted, series)
    digests = [miss.found for miss in judgement.misses]
    is_drifted = bool(digests) and judgement.variant is None
    accept = None
    if is_drifted and None not in digests:
        everything = frozenset(filter(None, digests))
        if judge(patch, tree.read, everything).variant is not None:
            accept = ",".join(f"{patch.id}@{digest}" for digest in dict.fromkeys(digests))
    known = sorted(sources_of(patch), key=lambda source: source.proved in NOTES)
    return Finding(
        id=patch.id,
        verdict=judgement.verdict,
        reason=judgement.reason,
        drifts=tuple(dict.fromkeys(_drift(miss, tree) for miss in judgement.misses)),
        known=tuple(source.releases + NOTES.get(source.proved, "") for source in known),
        accept=accept,
        diff=explain(judgement, tree)
        if explain and judgement.misses and not judgement.variant
        else None,
        off=off,
    )


def inspect_all(
    tree: SourceTree,
    series: Sequence[Patch],
    shown: Collection[str],
    settings: Settings,
    explain: Callable[[Judgement, SourceTree], str] | None = None,
) -> list[Finding]:
    """What is found of the patches of ``series`` with the ids ``shown``, in order.

    Those that ``settings`` do not select are off, and nothing more is said of them.
    """
    with trees_kept():
        return [
            inspect(
                patch,
                tree,
                settings.accepted.get(patch.id, frozenset()),
                series,
                explain if patch.id in settings.selected else None,
                None if patch.id in settings.selected else _why_off(patch),
            )
            for patch in series
            if patch.id in shown
        ]


def some_do_not_fit(findings: Iterable[Finding]) -> bool:
    """Whether one that is not off is drifted."""
    return any(f.verdict is Verdict.DRIFTED and f.off is None for f in findings)


def summary(findings: Sequence[Finding]) -> str:
    """How many patches have which verdict, in a line."""
    counts = Counter(finding.verdict for finding in findings if finding.off is None)
    words = [f"{counts[Verdict.APPLICABLE]} will be patched"]
    words += [f"{counts[v]} {v}" for v in Verdict if v is not Verdict.APPLICABLE]
    return f"{', '.join(words)}; {sum(f.off is not None for f in findings)} off"


def _why_off(patch: Patch) -> str:
    return f"not selected by {SELECTION}" if patch.default else "opt-in"


def _drift(miss: Miss, tree: SourceTree) -> Drift:
    path = tree.path(Target.parse(miss.target).module)
    return Drift(
        target=miss.target,
        file=None if path is None else str(path),
        line=None if miss.definition is None else miss.definition.first_line,
        found=miss.found,
        expected=miss.expected,
        anchors=miss.anchors,
    )
