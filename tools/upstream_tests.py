"""Upstream's own unit tests, without and with the patches: which end otherwise?

    python tools/upstream_tests.py --megatron ~/src/Megatron-LM
    python tools/upstream_tests.py --megatron ~/src/Megatron-LM --ranks 2 --json result.json \\
        tests/unit_tests/inference/contexts

Runs the tests of inference, of tensor parallelism and of CUDA graphs of a checkout of Megatron-LM
twice on the GPUs of this machine, with MEGATRON_PATCH=none and with the default patches, and prints
the tests whose results differ. Needs pytest, and what the checkout needs; for flash-attn,
Transformer Engine and causal_conv1d there are stand-ins where they are missing. Nothing is
downloaded, and nothing is written to the checkout.

Each test has a limit of time. A test that hangs, or after which a process died, is reported as
`timeout` or `crashed`, and the session goes on with the next test in new processes; after two of
them in one file, with the next file. With N ranks a test has passed when it has on all of them.

With --together the two runs share the GPUs at the same time; more than two sessions on one GPU run
out of memory in tests of CUDA graphs.

Exit status: 0 if no test fails with patches only, except those of the reviewed list
(`tools/upstream_suite/intended.py`); 1 if one does; 2 if there is nothing to compare: no tests, no
Megatron, or not one patch applied; 3 if a test ran on one side only.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from megatron_patch.sources import megatron_version  # noqa: E402
from tools.upstream_suite import layout  # noqa: E402
from tools.upstream_suite.intended import INTENDED  # noqa: E402
from tools.upstream_suite.outcomes import NOT_RUN, Comparison, compare, summary  # noqa: E402
from tools.upstream_suite.sessions import Limits, Session, run  # noqa: E402

TESTS = (
    "tests/unit_tests/inference",
    "tests/unit_tests/tensor_parallel",
    "tests/unit_tests/transformer/test_cuda_graphs.py",
)
SELECTION = "MEGATRON_PATCH"


def report(
    release: str, unpatched: Session, patched: Session, comparison: Comparison
) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "megatron_core": release,
        "ranks": patched.ranks,
        "tests": list(patched.tests),
        "complete": unpatched.ended and patched.ended and not comparison.incomplete,
        "differences": [asdict(difference) for difference in comparison.differences],
        "stale": comparison.stale,
        "sessions": {session.name: _session(session) for session in (unpatched, patched)},
    }


def _session(session: Session) -> dict[str, Any]:
    return {
        "summary": summary(session.results, session.collected),
        "seconds": round(session.seconds, 1),
        "stood_in_for": session.stood_in,
        "states": session.states,
        "notes": session.notes,
        "collected": list(session.collected),
        "results": {test: result.as_dict() for test, result in session.results.items()},
    }


def as_text(release: str, unpatched: Session, patched: Session, comparison: Comparison) -> str:
    """What is printed."""
    ranks = f"{patched.ranks} rank{'s' if patched.ranks > 1 else ''}"
    lines = [f"megatron-core {release}, {ranks}"]
    for session in (unpatched, patched):
        line = f"{session.name}: {summary(session.results, session.collected)}"
        lines.append(f"{line}, in {session.seconds:.0f} s")
        if session.states:
            states = Counter(session.states.values())
            lines.append("    patches: " + ", ".join(f"{n} {s}" for s, n in states.most_common()))
        lines += [f"    {note}" for note in session.notes]
    for difference in comparison.differences:
        if difference.change == NOT_RUN:
            continue
        lines.append(f"{difference.change}: {difference.test}")
        lines.append(f"    {difference.unpatched} -> {difference.patched}")
        result = patched.results.get(difference.test)
        if difference.intended is not None:
            lines.append(f"    intended: {difference.intended}")
        elif result is not None and result.message:
            last = result.message.strip().splitlines()[-8:]
            lines += [f"    | {line}" for line in last]
    lines += [f"intended to differ, but does not: {test}" for test in comparison.stale]
    one_sided = sum(difference.change == NOT_RUN for difference in comparison.differences)
    if one_sided:
        lines.append(f"{one_sided} tests ran on one side only")
    elif not comparison.differences:
        lines.append("no test differs")
    return "\n".join(lines)


def status(patched: Session, comparison: Comparison) -> int:
    """The exit status."""
    if comparison.wrong:
        return 1
    if not patched.results or "applied" not in patched.states.values():
        return 2
    return 3 if comparison.incomplete else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="upstream-tests-") as temporary:
        work = Path(temporary) if options.work is None else options.work.resolve()
        return _run(options, work)


def _run(options: argparse.Namespace, work: Path) -> int:
    try:
        tree = layout.build(work / "tree", options.megatron, options.installed)
        release = megatron_version(tree.read)
        if release is None:
            raise layout.LayoutError(
                f"{options.megatron} has no version: expected MAJOR, MINOR and PATCH in "
                "megatron/core/package_info.py"
            )
    except (layout.LayoutError, FileExistsError) as error:
        print(f"upstream_tests: {error}", file=sys.stderr)
        return 2
    limits = Limits(options.test_limit, options.grace, options.start_limit, options.session_limit)

    def session(name: str, selection: str) -> Session:
        return Session(
            name,
            tree.root,
            options.tests or TESTS,
            work / name,
            options.ranks,
            limits,
            {SELECTION: selection},
        )

    unpatched, patched = session("unpatched", "none"), session("patched", options.patches)

    def compared() -> Comparison:
        comparison = compare(unpatched.results, patched.results, release, INTENDED)
        if options.json is not None:
            whole = report(release, unpatched, patched, comparison)
            options.json.write_text(json.dumps(whole, indent=1) + "\n")
        return comparison

    try:
        run((unpatched, patched), 2 if options.together else 1, compared)
    finally:
        comparison = compared()
    print(as_text(release, unpatched, patched, comparison))
    return status(patched, comparison)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run upstream's unit tests without and with the patches, and compare.",
        epilog="Exit status: 0 when no test fails with patches only, except those of the reviewed "
        "list; 1 when one does; 2 when there is nothing to compare; 3 when a test ran on one side "
        "only.",
    )
    add = parser.add_argument
    default = Limits()
    add("tests", nargs="*", metavar="TEST", help=f"paths in the checkout (default: {TESTS})")
    add("--megatron", metavar="DIR", type=Path, required=True, help="a checkout of Megatron-LM")
    add("--installed", action="store_true", help="test the megatron.core that is installed")
    add("--ranks", type=int, default=1, metavar="N", help="processes, on as many GPUs (default: 1)")
    add("--patches", default="all", metavar="NAMES", help=f"{SELECTION} of the patched run")
    add("--together", action="store_true", help="both runs at the same time")
    add("--json", metavar="FILE", type=Path, help="write all results there")
    add("--work", metavar="DIR", type=Path, help="keep records and logs there; must not exist yet")
    for name, value, what in (
        ("test", default.test, "a test"),
        ("start", default.start, "the start of a session"),
        ("session", default.session, "a whole session"),
    ):
        add(
            f"--{name}-limit",
            type=float,
            default=value,
            metavar="SECONDS",
            help=f"of {what} (default: {value:g})",
        )
    add(
        "--grace",
        type=float,
        default=default.grace,
        metavar="SECONDS",
        help=f"for a test to give way after its limit (default: {default.grace:g})",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
