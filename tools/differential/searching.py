"""Draw configurations, judge them, and shrink those that show something.

Hypothesis stops at the first failure. So a search is a sequence of its runs, each with a seed of
its own, and what an earlier one has found is left alone by later ones.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed

from . import judging
from .configuration import Configuration, dimensions, encode
from .devices import DeviceLostError
from .drawing import Abilities, configurations
from .judging import Finding, Judgement, Runner

BATCH = 100
"""Examples of one run of Hypothesis."""
SHRINKING = 45.0
"""Seconds for which one failure is shrunk."""


class FoundError(AssertionError):
    """Tells Hypothesis that a configuration shows something."""


@dataclass(frozen=True)
class Found:
    """The smallest configuration that shows something."""

    configuration: Configuration
    finding: Finding
    examples: int
    """How many configurations were run up to the first one that shows it."""
    patches: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command that repeats it."""
        return command(self.configuration)

    def __str__(self) -> str:
        by = f"\n  by {', '.join(self.patches)}" if self.patches else ""
        return (
            f"{self.finding}{by}\n  after {self.examples} examples; repeat with\n  {self.command}"
        )


def command(configuration: Configuration) -> str:
    """The command that runs one configuration."""
    import shlex

    return f"python tools/matrix.py --repeat {shlex.quote(encode(configuration))}"


def sample(able: Abilities, number: int, seed: int) -> list[Configuration]:
    """``number`` configurations, the same ones for the same seed."""
    drawn: list[Configuration] = []

    def keep(configuration: Configuration) -> None:
        drawn.append(configuration)

    _settings(number, [Phase.generate])(hypothesis_seed(seed)(given(configurations(able))(keep)))()
    return drawn[:number]


def _settings(examples: int, phases: Sequence[Phase]) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=phases,
        print_blob=False,
    )


@dataclass
class Search:
    """Configurations run so far, and what they showed."""

    able: Abilities
    run_with: Runner
    applied: Sequence[str]
    found: list[Found] = field(default_factory=list)
    examples: int = 0
    values: dict[str, Counter[str]] = field(default_factory=dict)
    """How often each value of each dimension was run."""
    fixed: int = 0
    unstable: list[str] = field(default_factory=list)
    """Configurations with which the released engine does not do the same twice."""
    known: Counter[str] = field(default_factory=Counter)
    lost: DeviceLostError | None = None
    """The device was lost, and the search over."""
    wanted: Callable[[Finding], bool] = lambda finding: True
    told: Callable[[Configuration, Finding], None] = lambda configuration, finding: None
    """Called with each finding at once, before it is shrunk."""

    def run(
        self,
        first_seed: int,
        *,
        examples: int | None = None,
        seconds: float | None = None,
        progress: Callable[[Search], None] = lambda search: None,
        most: int = 20,
    ) -> None:
        """Run ``examples`` configurations, or for ``seconds``, or until ``most`` were found."""
        end = None if seconds is None else time.monotonic() + seconds
        number = first_seed
        while len(self.found) < most and self.lost is None:
            left = BATCH if examples is None else min(BATCH, examples - self.examples)
            if left <= 0 or (end is not None and time.monotonic() >= end):
                return
            self._batch(number, left, end, progress)
            number += 1

    def _batch(
        self, number: int, examples: int, end: float | None, progress: Callable[[Search], None]
    ) -> None:
        signatures = {found.finding.signature for found in self.found}
        failing: dict[str, tuple[Configuration, Finding]] = {}
        target: list[tuple[str, ...]] = []
        since = [0.0, 0.0]

        def judge(configuration: Configuration) -> None:
            # Raised in one place only: to Hypothesis another place is another failure.
            if shows_something(configuration):
                raise FoundError

        def shows_something(configuration: Configuration) -> bool:
            text = encode(configuration)
            if text in failing:
                return True
            if self.lost is not None:
                return False
            now = time.monotonic()
            if target:
                if now > since[0] + SHRINKING:
                    return False
            elif end is not None and now >= end:
                return False
            try:
                judgement = judging.judge(configuration, self.run_with)
            except DeviceLostError as error:
                self.lost = error
                return False
            if not target:
                self._count(configuration, judgement)
                progress(self)
            for finding in judgement.findings:
                if finding.signature in signatures or not self.wanted(finding):
                    continue
                if not target:
                    target.append(finding.signature)
                    since[:] = [time.monotonic(), float(self.examples)]
                    self.told(configuration, finding)
                if finding.signature == target[0]:
                    failing[text] = configuration, finding
                    return True
            return False

        phases = [Phase.generate, Phase.shrink]
        test = _settings(examples, phases)(
            hypothesis_seed(number)(given(configurations(self.able))(judge))
        )
        try:
            test()
        except FoundError:
            text = min(failing, key=lambda item: (len(item), item))
            configuration, finding = failing[text]
            self.found.append(self._attributed(configuration, finding, int(since[1])))

    def _attributed(self, configuration: Configuration, finding: Finding, examples: int) -> Found:
        patches: Sequence[str] = ()
        try:
            patches = judging.attribute(configuration, finding, self.run_with, self.applied)
        except DeviceLostError as error:
            self.lost = error
        return Found(configuration, finding, examples, tuple(patches))

    def _count(self, configuration: Configuration, judgement: Judgement) -> None:
        self.examples += 1
        for name, value in dimensions(configuration).items():
            self.values.setdefault(name, Counter())[value] += 1
        self.fixed += judgement.fixed
        self.known.update(judgement.known)
        if judgement.unstable:
            self.unstable.append(encode(configuration))
