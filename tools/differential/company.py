"""What else is in the process: code of others on and around what the patches change.

A guest is there before the patches, or comes after them. One that stands on a target of a patch
makes each selection be installed anew, because what is applied then is not what it is without.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

NOWHERE = nullcontext


def always() -> bool:
    return True


@dataclass(frozen=True)
class Guest:
    """Somebody else's code in the process."""

    why: str
    before: Callable[[], AbstractContextManager[None]] = NOWHERE
    """Put in place before the patches are."""
    built: Callable[[Any], None] = lambda engine: None
    """Does something to each engine that is built."""
    observe: Callable[[], Any] = lambda: None
    """What else a caller sees with the patches in force."""
    on_target: bool = False
    """Patches are judged with it in place."""
    possible: Callable[[], bool] = always
    """Whether the installed release has what it needs."""


COMPANY: dict[str, Guest] = {}
