"""The options of `tools/prove.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_patch.backports import SERIES
from tools.history.trees import tree_of

#: No release that is supported branched off before.
SINCE = "2025-06-01"


def parser(description: str) -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--megatron", type=Path, metavar="CLONE", help="a clone of Megatron-LM")
    made.add_argument(
        "--tree",
        type=tree_of,
        action="append",
        default=[],
        metavar="VERSION=DIR",
        help="a release, and the folder that its `megatron` is in; repeatable",
    )
    made.add_argument(
        "--since",
        default=SINCE,
        metavar="YYYY-MM-DD",
        help="leave out older commits of branches; default: %(default)s",
    )
    made.add_argument(
        "--patch",
        choices=[patch.id for patch in SERIES],
        action="append",
        metavar="ID",
        help="ask of this patch alone; repeatable; default: all",
    )
    made.add_argument("--journal", type=Path, metavar="FILE", help="keep the answers there")
    made.add_argument(
        "--read",
        action="append",
        default=[],
        metavar="DIGEST",
        help="of code that a variant replaces or relies on, and that you have read; repeatable",
    )
    made.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="prove at so many commits at a time"
    )
    made.add_argument("--python", default=sys.executable, help="the Python that runs the proofs")
    made.add_argument(
        "--seconds", type=float, default=900, help="limit for the proofs of one commit"
    )
    made.add_argument("--again", action="store_true", help="ask again what stayed unknown")
    made.add_argument("--anew", action="store_true", help="take nothing for proved: ask everything")
    made.add_argument("--plan", action="store_true", help="say what there is to do")
    made.add_argument("--check", action="store_true", help="compare the ledger with its commits")
    made.add_argument("--sample", type=int, metavar="N", help="prove N builds again")
    made.add_argument(
        "--entries", type=int, metavar="N", help="prove N entries of each build; default: all"
    )
    made.add_argument("--seed", type=int, metavar="S", help="of the sample; default: any")
    made.add_argument("--cache", type=Path, metavar="DIR", help="keep the wheels of a sample there")
    made.add_argument("--write", action="store_true", help="write the ledger of the answers")
    return made
