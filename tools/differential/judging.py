"""What may differ between the runs of one configuration, and which patch changes more than it may.

A performance patch may change nothing, whatever it is put on: the released engine, or the engine
with the correctness patches. A correctness patch may change something only where the released
engine is shown wrong, and then the patched one has to be right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO

from megatron_patch.testing.runtime import running

from . import comparing, defects, intended, oracles, slots
from .company import COMPANY
from .comparing import Difference
from .configuration import Configuration
from .devices import told_of_lost_device
from .observing import Observation
from .oracles import Complaint
from .running import run
from .selections import ALL, CORRECTNESS, NONE, PERFORMANCE, Selections

#: Runs a configuration with the patches of a selection.
Runner = Callable[[Configuration, str], Observation]


@dataclass(frozen=True)
class Finding:
    """Something that must not be."""

    kind: str
    """``performance``: a performance patch changes something. ``harm``: the patched run is wrong
    where the released one is not. ``unproven``: the patched run differs, and nothing shows the
    released one wrong. ``defect``: both are wrong, and it is not known."""
    between: tuple[str, str]
    """The selections, the right one first."""
    differences: tuple[Difference, ...] = ()
    complaints: tuple[Complaint, ...] = ()

    @property
    def signature(self) -> tuple[str, ...]:
        """Equal for findings that are probably the same one."""
        if self.complaints:
            first = self.complaints[0]
            facts = first.facts
            return (self.kind, first.kind, str(facts.get("list", "")), str(facts.get("type", "")))
        kinds = sorted({difference.kind for difference in self.differences})
        return (self.kind, *kinds[:1])

    def __str__(self) -> str:
        lines = [f"{self.kind}: {' -> '.join(self.between)}"]
        lines += [f"  {complaint}" for complaint in self.complaints[:4]]
        lines += [f"  {difference}" for difference in self.differences[:6]]
        more = len(self.differences) - 6
        return "\n".join([*lines, *([f"  and {more} more"] if more > 0 else [])])


@dataclass
class Judgement:
    """What the runs of a configuration show."""

    findings: list[Finding] = field(default_factory=list)
    fixed: bool = False
    """The patched run differs because the released one is wrong."""
    known: list[str] = field(default_factory=list)
    """Names of the known defects that were seen."""
    unstable: bool = False
    """The released engine does not do the same twice, such as where it reads memory that nobody
    wrote: then nothing can be said of the patches."""


def runner(selections: Selections) -> Runner:
    """A function that runs a configuration with its company and with a selection in force."""

    def run_with(configuration: Configuration, selection: str) -> Observation:
        with told_of_lost_device(configuration, selection):
            return run_in_company(configuration, selection)

    def run_in_company(configuration: Configuration, selection: str) -> Observation:
        guest = COMPANY.get(configuration.company or "")
        # Some releases print what they do.
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(StringIO()))
            if guest is None or not guest.on_target:
                stack.enter_context(selections.force(selection))
            else:
                stack.enter_context(guest.before())
                stack.enter_context(selections.anew(selection))
            observation = run(configuration)
            if guest is None or not guest.on_target:
                observation.patches = frozenset(selections.applied(selection))
            return observation

    return run_with


def judge(
    configuration: Configuration,
    run_with: Runner,
    selections: Sequence[str] = (NONE, PERFORMANCE, CORRECTNESS, ALL),
    everything: bool = False,
) -> Judgement:
    """Run a configuration with the selections, and compare.

    The run with the performance patches alone is left out for three of four configurations where
    the run with all patches shows nothing: only a correctness patch that hides what they do could
    then make it differ. ``everything``: make all runs, whatever they show, as ranks that run
    together have to.
    """
    none, performance, correctness, both = selections
    judgement = Judgement()
    seen = {none: run_with(configuration, none), both: run_with(configuration, both)}
    patched = both
    if everything or comparing.differences(seen[none].record, seen[both].record):
        seen[correctness] = run_with(configuration, correctness)
        judgement.findings += _same(seen, correctness, both)
        patched = correctness
    if everything or judgement.findings or configuration.seed == 0:
        seen[performance] = run_with(configuration, performance)
        judgement.findings[:0] = _same(seen, none, performance)
    _compare(configuration, seen, none, patched, judgement)
    _leave_out_undefined(configuration, seen, judgement)
    if judgement.findings and not everything:
        again = run_with(configuration, none)
        if comparing.differences(seen[none].record, again.record):
            return Judgement(known=judgement.known, unstable=True)
        _leave_out_unwritten(configuration, seen, correctness, run_with, judgement)
    return judgement


def _leave_out_undefined(
    configuration: Configuration, seen: dict[str, Observation], judgement: Judgement
) -> None:
    """Say nothing of what performance patches change from where nothing says what a run reads.

    Where it reads no block at all, keys and values are those of whatever stands where the kernel
    looks. Where two requests write to one slot, they are on a GPU those of either.
    """
    left = []
    for finding in judgement.findings:
        case = oracles.Case(configuration, seen[finding.between[0]])
        firsts = [*defects.forgotten_prompts(case).values()]
        if not running().on_cpu:
            contested = slots.contested(case.observation.forwards, configuration.block_size)
            firsts += [] if contested is None else [contested]
        apart = intended.first_apart(case, finding.differences)
        if finding.kind != "performance" or not firsts or apart < min(firsts):
            left.append(finding)
        else:
            judgement.unstable = True
    judgement.findings = left


def _leave_out_unwritten(
    configuration: Configuration,
    seen: dict[str, Observation],
    base: str,
    run_with: Runner,
    judgement: Judgement,
) -> None:
    """Say nothing of what follows a run that reads keys and values that nobody wrote.

    It does not do the same twice then, and only a known defect of the release excuses that.
    """
    found = [finding for finding in judgement.findings if finding.between[0] == base]
    case = oracles.Case(configuration, seen[base]) if found else None
    spoilt = {} if case is None else defects.spoilt_by_drafts(case)
    if case is None or not spoilt:
        return
    again = comparing.differences(seen[base].record, run_with(configuration, base).record)
    apart = intended.first_apart(case, again)
    if min(spoilt.values()) <= apart < len(case.observation.forwards):
        judgement.findings = [item for item in judgement.findings if item not in found]
        judgement.unstable = True


def _same(seen: dict[str, Observation], left: str, right: str) -> list[Finding]:
    found = comparing.differences(seen[left].record, seen[right].record)
    return [Finding("performance", (left, right), tuple(found))] if found else []


def _compare(
    configuration: Configuration,
    seen: dict[str, Observation],
    none: str,
    patched: str,
    judgement: Judgement,
) -> None:
    """The released run against the one with correctness patches."""
    differences = tuple(comparing.differences(seen[none].record, seen[patched].record))
    wrong = {name: _unknown(configuration, seen[name], judgement) for name in (none, patched)}
    raised = seen[none].record["error"] is not None
    known = {(item.kind, item.request) for item in wrong[none]}
    new = [item for item in wrong[patched] if (item.kind, item.request) not in known]
    old = [item for item in wrong[patched] if item not in new]
    between = (none, patched)
    if new and not raised:
        judgement.findings.append(Finding("harm", between, differences, tuple(new)))
    elif (new or old) and not _on_target(configuration):
        judgement.findings.append(Finding("defect", between, (), tuple(new or old)))
    elif differences and not new:
        everything = oracles.complaints(configuration, seen[none])
        still = set(oracles.complaints(configuration, seen[patched]))
        case = oracles.Case(configuration, seen[none])
        if any(item not in still for item in everything):
            judgement.fixed = True
        other = oracles.Case(configuration, seen[patched])
        rest = [item for item in differences if not defects.explain(other, item)]
        if not judgement.fixed and case.told and intended.recognise(case, rest) is None:
            judgement.findings.append(Finding("unproven", between, differences))


def _on_target(configuration: Configuration) -> bool:
    """Whether other code stands on the targets of patches, which then mend nothing."""
    guest = COMPANY.get(configuration.company or "")
    return guest is not None and guest.on_target


def _unknown(
    configuration: Configuration, observation: Observation, judgement: Judgement
) -> list[Complaint]:
    """What is wrong with a run and is not known to be."""
    case = oracles.Case(configuration, observation)
    left = []
    for complaint in oracles.complaints(configuration, observation):
        known = defects.recognise(case, complaint)
        if known is None:
            left.append(complaint)
        elif known.name not in judgement.known:
            judgement.known.append(known.name)
    return left


def attribute(
    configuration: Configuration, finding: Finding, run_with: Runner, applied: Sequence[str]
) -> list[str]:
    """Ids of the patches without which the finding is gone, or which alone bring it about."""
    left, right = finding.between
    base = run_with(configuration, left).record
    whole = comparing.differences(base, run_with(configuration, right).record)
    if not whole:
        return []
    kinds = {item.kind for item in whole}

    def same(selection: str) -> bool:
        there = comparing.differences(base, run_with(configuration, selection).record)
        return {item.kind for item in there} >= kinds

    guilty = [name for name in applied if not same(f"{right},-{name}")]
    return guilty or [name for name in applied if same(f"{left},{name}")]
