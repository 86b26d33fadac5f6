"""Show text of others as it is, but for characters that would not be seen, or be obeyed."""

from __future__ import annotations

import unicodedata

#: Control characters, those that change the direction or are not seen, and halves of surrogates.
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def shown(text: str, ends: bool = True) -> str:
    """``text`` with an escape for each such character; line ends and tabs stay, if ``ends``."""
    if text.isascii() and text.isprintable():
        return text
    kept = "\n\t" if ends else ""
    return "".join(
        c if c in kept or unicodedata.category(c) not in UNSEEN else _escaped(c) for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
