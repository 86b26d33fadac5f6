"""``enable``, ``disable``: patch each process of an environment's Python, or no longer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .. import enabling

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_to(commands: Commands) -> None:
    """Add both commands to those of the command line."""
    command = commands.add_parser(
        "enable",
        help="patch each process of this Python, however it is started; disable ends it",
        description="Write megatron-patch.pth into the site-packages of the Python that runs this "
        "command. From then on each of its processes is patched when it imports Megatron, as if it "
        "had imported megatron_patch before: also with another PYTHONPATH, with an empty "
        "environment, and under -E and -I. Only -S, which leaves site-packages out, is not "
        "reached. The settings are those of the variables; MEGATRON_PATCH=none leaves a process "
        "alone.",
        epilog="exit status: 0; 1 when site-packages cannot be written",
    )
    command.set_defaults(function=enable)
    command = commands.add_parser(
        "disable",
        help="remove what enable has written",
        description="Remove megatron-patch.pth from the site-packages of the Python that runs this "
        "command. Processes that run stay as they are. Where the package is not installed any "
        "more the file does nothing, and may be removed by hand.",
        epilog="exit status: 0; 1 when the file cannot be removed, or is not ours",
    )
    command.set_defaults(function=disable)


def enable(options: argparse.Namespace) -> int:
    """Write the file, and say where it is."""
    file, is_new = enabling.enable()
    print(f"enabled by {file}" if is_new else f"already enabled by {file}")
    return 0


def disable(options: argparse.Namespace) -> int:
    """Remove the file."""
    file, was_there = enabling.disable()
    print(f"removed {file}" if was_there else f"not enabled: there is no {file}")
    return 0
