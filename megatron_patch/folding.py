"""Fold prose for a terminal. Names of patches and of targets stay whole."""

from __future__ import annotations

import textwrap

WIDTH = 80


def folded(text: str, hanging: str = "") -> list[str]:
    """The lines of ``text``; all but the first begin with ``hanging``."""
    return textwrap.wrap(
        text,
        WIDTH,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
