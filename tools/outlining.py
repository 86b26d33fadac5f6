"""Outline the files that have the targets of the series, see `megatron_patch.outlines`."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import replace

from megatron_patch.definitions import compiled_with, parsed
from megatron_patch.edits import Target
from megatron_patch.errors import TargetError
from megatron_patch.outlines import Outline, Place, digest_of
from megatron_patch.source_tree import SourceTree


def outlines_of(tree: SourceTree, targets: Iterable[str]) -> dict[str, Outline]:
    """By the digest of its text, the outline of each file of `tree` that could have a target."""
    names: dict[str, list[str]] = {}
    for target in sorted(targets):
        parts = Target.parse(target)
        names.setdefault(parts.module, []).append(parts.qualname)
    texts = {module: tree.read(module) for module in names}
    return {
        digest_of(text): outline(module, text, names[module])
        for module, text in texts.items()
        if text is not None
    }


def outline(module: str, text: str, names: Iterable[str]) -> Outline:
    """The outline of one file.

    A name is left out where the text has to be parsed to say what is wrong with it.
    """
    places: dict[str, Place | None] = {}
    for name in names:
        try:
            found = parsed(module, text, name)
            if found is None:
                places[name] = None
            elif ast.dump(replace(found, found=None).node) == ast.dump(found.node):
                last = found.first_line + found.segment.count("\n") - 1
                places[name] = Place(found.first_line, last, found.digest)
        except TargetError:
            continue
    return Outline(places, *compiled_with(text))
