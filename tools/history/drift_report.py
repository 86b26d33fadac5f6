"""The report on drift, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from .commits import Commit
from .drift import Drift, Judged


def as_json(branch: str, head: str, rows: Sequence[Judged], drifts: Iterable[Drift]) -> Any:
    """What ``json.dumps`` takes: counts, the commits with what is drifted, and the patches."""
    return {
        "branch": branch,
        "head": head,
        "summary": summary(rows),
        "commits": [
            {"commit": row.commit.id, "date": row.commit.date, "drifted": list(row.drifted)}
            for row in rows
        ],
        "patches": [
            {
                "id": drift.id,
                "needed": drift.needed,
                "drifted": len(drift.commits),
                "first": drift.commits[0].id if drift.commits else None,
                "last": drift.commits[-1].id if drift.commits else None,
                "missed": [
                    {"target": missed.target, "digest": missed.digest, "commits": count}
                    for missed, count in _sorted(drift)
                ],
                "others": dict(drift.others),
            }
            for drift in drifts
        ],
    }


def summary(rows: Sequence[Judged]) -> dict[str, int]:
    """How many commits and pairs of a commit and a patch there are, and are drifted."""
    return {
        "commits": len(rows),
        "drifted_commits": sum(bool(row.drifted) for row in rows),
        "pairs": sum(len(row.judgements) for row in rows),
        "drifted_pairs": sum(len(row.drifted) for row in rows),
    }


def as_text(branch: str, rows: Sequence[Judged], drifts: Iterable[Drift]) -> str:
    """The report for people to read, the patches with the most drifted commits first."""
    counts = summary(rows)
    lines = [
        f"{branch}: {counts['commits']} first-parent commits touch the targets"
        + (f", {_span([row.commit for row in rows])}" if rows else ""),
        f"{counts['drifted_commits']} of them have a drifted patch; of {counts['pairs']} pairs of "
        f"a commit and a patch, {counts['drifted_pairs']} are drifted "
        f"({counts['drifted_pairs'] / max(counts['pairs'], 1):.1%})",
    ]
    for drift in sorted(drifts, key=lambda drift: -len(drift.commits)):
        if not drift.commits:
            continue
        lines += ["", f"{drift.id}: drifted at {len(drift.commits)} of {drift.needed} commits"]
        lines[-1] += f" that need it, {_span(drift.commits)}"
        by_target: dict[str, Counter[str]] = {}
        for missed, count in _sorted(drift):
            by_target.setdefault(missed.target, Counter())[missed.digest or "not found"] = count
        for target, digests in by_target.items():
            lines.append(f"    {target}")
            lines += [f"        {digest}: {count}" for digest, count in digests.items()]
        lines += [f"    {reason}: {count}" for reason, count in drift.others.items()]
    return "\n".join(lines)


def _sorted(drift: Drift) -> list[Any]:
    """The sources that are not known, by target, those of the most commits first."""
    return sorted(
        drift.missed.items(), key=lambda item: (item[0].target, -item[1], item[0].digest or "")
    )


def _span(commits: Sequence[Commit]) -> str:
    first, last = commits[0], commits[-1]
    return f"from {first.short} ({first.date}) to {last.short} ({last.date})"
