"""``list`` and ``show``: the records."""

from __future__ import annotations

import argparse
import textwrap

from ..export import UPSTREAM
from ..judge import TOLD
from ..ledger import sources_of
from ..model import Origin, Patch
from ..settings import RECORDS
from . import SERIES


def list_records(_: argparse.Namespace) -> int:
    """The backports, a line each."""
    for patch in SERIES:
        opt_in = "" if patch.default else "  (only when selected by name)"
        number = "" if patch.upstream_pr is None else f" #{patch.upstream_pr}"
        print(f"{patch.id}  {patch.kind}  {patch.origin}{number}  megatron-core {patch.releases}")
        print(f"    {patch.summary}{opt_in}")
    return 0


def show(options: argparse.Namespace) -> int:
    """All about one backport."""
    patch: Patch = options.patch
    targets = {edit.target: None for variant in patch.variants for edit in variant.edits}
    rows = {
        "summary": patch.summary,
        "kind": str(patch.kind),
        "group": str(patch.origin),
        "without it": patch.symptom,
        "with it": patch.outcome,
        "upstream": f"{UPSTREAM}/pull/{patch.upstream_pr}, "
        f"commit {patch.upstream_commit} of {patch.upstream_date}"
        if patch.upstream_pr is not None
        else "has no such change: this one is "
        + ("ours" if patch.origin is Origin.OURS else f"of {RECORDS}"),
        "fixed in": f"megatron-core {patch.fixed_in}" if patch.fixed_in else "no release",
        "applies to": f"megatron-core {patch.releases}: "
        + "; ".join(s.releases for s in sources_of(patch) if s.proved not in TOLD),
        "by default": "on" if patch.default else "off: select it by its id in MEGATRON_PATCH",
        "edits": "\n".join(targets),
        "removal": patch.removal,
    }
    print(patch.id)
    for name, text in rows.items():
        lines = text.splitlines() if name == "edits" else textwrap.wrap(text, 84)
        print(f"  {name:12}" + ("\n" + " " * 14).join(lines))
    return 0
