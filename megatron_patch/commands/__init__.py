"""The commands of ``megatron-patch``: each takes its options and returns the exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import _engine, _problem
from ..model import Patch
from ..settings import Settings, selected

#: All patches of this process, those of others behind those of this package.
SERIES = _engine.series

#: The setting that was not understood when this package was imported, ``None`` if all were.
PROBLEM = _problem

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
    return settings_for(series, options).selected


def settings_for(series: Sequence[Patch], options: argparse.Namespace) -> Settings:
    """Those of the environment, with what the arguments select in the place of what it does."""
    settings = Settings.from_environment(series)
    if not options.only:
        return settings
    return settings._replace(selected=selected(series, ",".join(options.only), "ID"))
