"""Releases on disk, installed or unpacked, for those that a clone has no tag of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from packaging.version import InvalidVersion, Version

from megatron_patch.errors import NotMegatronError
from megatron_patch.source_tree import SourceTree


class Tree(NamedTuple):
    """A release, and the folder that holds its ``megatron``."""

    version: str
    root: Path


def tree_of(text: str) -> Tree:
    """What ``VERSION=DIR`` names. Raises ``ArgumentTypeError`` on another form or no such tree."""
    version, equals, folder = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected VERSION=DIR")
    try:
        Version(version)
        return Tree(version, SourceTree.at(Path(folder)).root)
    except (InvalidVersion, NotMegatronError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
