"""The commands of ``megatron-patch``: each takes its options and returns the exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import _engine
from ..model import Patch
from ..settings import selected

#: All patches of this process, those of others behind those of this package.
SERIES = _engine.series

#: The exit status when some of the selected patches do not fit the source: they are drifted.
SOME_DO_NOT_FIT = 3


def note(text: str | None) -> None:
    """Print a line on stderr, if there is something to say."""
    if text:
        print(text, file=sys.stderr)


def chosen(series: Sequence[Patch], options: argparse.Namespace) -> frozenset[str]:
    """The ids of the patches that a command is to look at: all, if its arguments name none."""
    if not options.only:
        return frozenset(patch.id for patch in series)
    return frozenset(selected(series, ",".join(options.only), "ID"))
