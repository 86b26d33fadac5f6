"""Survey the history of Megatron-LM: which source have the targets of the series ever had?

    git clone --no-checkout https://github.com/NVIDIA/Megatron-LM
    python tools/survey.py --megatron Megatron-LM
    python tools/survey.py --megatron Megatron-LM --report --branch dev --since 2025-08-18

Writes the ledger, `megatron_patch/ledger/sources.json`: target -> digest -> the releases, and the
first and the last first-parent commit of main, dev and each release branch that have it. Its diff
after a survey of a newer clone says what upstream has changed. `--check` writes nothing, and says
what would be different.

With `--report` it says instead at how many commits of a branch, of those that touch the files of
the targets, each default patch is drifted, and which source it does not know there.

The files are read from the objects of the clone: nothing is checked out, imported or executed, and
nothing is fetched. A file that does not parse is left out, and named on stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from megatron_patch.backports import SERIES  # noqa: E402
from megatron_patch.errors import LedgerError  # noqa: E402
from tools.history import drift, drift_report, ledger, ledger_file  # noqa: E402
from tools.history.commits import Clone  # noqa: E402
from tools.history.digests import targets_of  # noqa: E402
from tools.history.git import CloneError  # noqa: E402
from tools.history.trees import tree_of  # noqa: E402

SOURCES = REPOSITORY / "megatron_patch" / "ledger" / "sources.json"


class Progress:
    """One line on stderr, if that is a terminal."""

    def __init__(self) -> None:
        self.shown = False

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            self.shown = True
            print(f"\r\x1b[K{text[:78]}", end="", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self.end()
        print(f"survey: {text}", file=sys.stderr)

    def end(self) -> None:
        """Take the line away."""
        if self.shown:
            self.shown = False
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def make_survey(
    clone: Clone, output: Path, check: bool, trees: dict[str, Path], progress: Progress
) -> int:
    """Write the ledger, or say what is different in it; returns the exit status."""
    old = ledger_file.load(output) if check else None
    made = ledger.survey(clone, targets_of(SERIES), progress, progress.say, trees)
    progress.end()
    if old is None:
        ledger_file.write(made, output)
        digests = sum(map(len, made.targets.values()))
        print(f"{output}: {digests} digests of {len(made.targets)} targets")
        for target in (target for target, found in made.targets.items() if not found):
            progress.say(f"{target} is in no source that was surveyed")
        return 0
    lines = list(ledger_file.differences(old, made))
    print("\n".join(lines or [f"{output}: nothing is different"]))
    return int(bool(lines))


def make_report(
    clone: Clone, branch: str, since: str | None, output: Path | None, progress: Progress
) -> int:
    """Print the report on drift, and write it to ``output`` too; returns the exit status."""
    patches = [patch for patch in SERIES if patch.default]
    commits = drift.touching(clone, branch, targets_of(SERIES), since)
    rows = drift.judged(clone, commits, patches, progress)
    progress.end()
    drifts = drift.drifts(rows, patches)
    if output is not None:
        made = drift_report.as_json(branch, clone.head(branch), rows, drifts)
        ledger_file.replace(output, json.dumps(made, indent=2) + "\n")
    print(drift_report.as_text(branch, rows, drifts))
    return 0


def day(text: str) -> str:
    """A day in the form ``YYYY-MM-DD``. Raises ``ValueError`` on another form."""
    return datetime.strptime(text, "%Y-%m-%d").strftime("%Y-%m-%d")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Survey the history of Megatron-LM: which source have the targets had?",
        epilog="exit status: 0; 1 when --check finds something different; 2 when the clone or the "
        "ledger cannot be used",
    )
    parser.add_argument(
        "--megatron", metavar="CLONE", type=Path, required=True, help="a clone of Megatron-LM"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: that of the package")
    parser.add_argument("--check", action="store_true", help="say what is different, write nothing")
    parser.add_argument("--report", action="store_true", help="report where patches are drifted")
    parser.add_argument("--branch", help="for --report; default: main")
    parser.add_argument("--since", metavar="YYYY-MM-DD", type=day, help="for --report")
    parser.add_argument("--json", metavar="FILE", type=Path, help="for --report: write JSON, too")
    parser.add_argument(
        "--tree",
        metavar="VERSION=DIR",
        type=tree_of,
        action="append",
        default=[],
        help="a release that has no tag, and where its wheel is unpacked; repeatable",
    )
    options = parser.parse_args(arguments)
    if options.report and (options.check or options.output):
        parser.error("--report makes no ledger: leave out --check and --output")
    if not options.report and (options.branch or options.since or options.json):
        parser.error("--branch, --since and --json are for --report")
    branch, output = options.branch or ledger.MAIN, options.output or SOURCES
    progress = Progress()
    try:
        with Clone(options.megatron) as clone:
            if options.report:
                return make_report(clone, branch, options.since, options.json, progress)
            return make_survey(clone, output, options.check, dict(options.tree), progress)
    except (CloneError, LedgerError) as error:
        progress.say(str(error))
        return 2
    except KeyboardInterrupt:
        progress.say("interrupted; nothing was written")
        return 130


if __name__ == "__main__":
    sys.exit(main())
