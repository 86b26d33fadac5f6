"""``run``: start a command with the patches in it."""

from __future__ import annotations

import argparse
import os

from .. import launcher
from ..settings import Settings
from . import SERIES


def run(options: argparse.Namespace) -> int:
    """Become the command, or with ``--strict`` run it: see ``launcher.run``."""
    command = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    if not command:
        options.usage_error("expected a command after --")
    environment = launcher.environment_for(os.environ, only=options.only, strict=options.strict)
    # What the processes of the command would stumble over is told here, before any starts.
    strict = Settings.from_environment(SERIES, environment).strict
    return launcher.run(command, environment, strict=strict)
