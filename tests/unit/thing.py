"""A module with a class ``Thing`` as text, and edits of it."""

from __future__ import annotations

from megatron_patch.edits import Add, Before, Edit, Replace, Requires, Substitute
from megatron_patch.model import Patch

from .sample import digest_in, make_patch
from .source_trees import MODULE

TEXT = '''\
# Copyright.
"""A module."""

from __future__ import annotations

import functools  # used below

if functools:
    import os


@functools.lru_cache( maxsize = None )
def function( x ):
    return x-1  # odd formatting


# What a thing is.
@functools.total_ordering
class Thing:
    """A thing."""

    LIMIT = 3

    # about one
    def one(self, x, *, y: int = 3) -> int:  # on the signature
        """Doc of one."""
        # about total
        total = ( x+y )  # on total

        for item in range(2):
            total += item
        return total * self.LIMIT

    @property
    @functools.cache
    def decorated(self):
        return 7

    def one_line(self): return 1  # on one line

    async def fetch(self,
                    x):
        result = x + 1
        return result

    class Inner:
        def method(self):
            return 2


class Other:
    def last(self):
        try:
            return 3
        except (ValueError, TypeError):
            return 4
'''


def one(self, x, *, y=3):  # type: ignore[no-untyped-def]
    """Doc of ours."""
    # a comment of ours
    first: int = x  # type: ignore[assignment]

    return first + y


def decorated(self):  # type: ignore[no-untyped-def]
    return 77


def one_line(self):  # type: ignore[no-untyped-def]
    return 11


def hook(self) -> None:  # type: ignore[no-untyped-def]
    """Not to be seen."""
    self.log = {}
    if self.log:
        self.log = {}


def _helper(self: Any, x: int) -> int:  # type: ignore[name-defined]  # noqa: F821
    """Doc of the helper.

    More of it.
    """
    return x


def _function(x: int) -> int:
    return x


SAME = "@classmethod\ndef _same(cls, of=one_line):\n    return of\n"


class _Holder:
    """Holds."""

    x = 1


def add(name: str, definition) -> Add:  # type: ignore[no-untyped-def]
    return Add(f"{MODULE}:{name}", definition)


def substitute(name: str, find: str, put: str) -> Substitute:
    return Substitute(f"{MODULE}:{name}", find, put)


def prefix(name: str) -> Before:
    return Before(f"{MODULE}:{name}", hook)


def whole(name: str, function) -> Replace:  # type: ignore[no-untyped-def]
    return Replace(f"{MODULE}:{name}", function)


def requires(name: str) -> Requires:
    return Requires(f"{MODULE}:{name}", "the helper stands next to it")


def patch_of(*edits: Edit, **options) -> Patch:  # type: ignore[no-untyped-def]
    """A patch for source as it is in ``TEXT``."""
    return make_patch(*edits, known=digest_in(TEXT), **options)


HELPER_TEXT = '''\
    def _helper(self, x: int) -> int:
        """Doc of the helper.

        More of it.
        """
        return x

'''
HOOK_TEXT = """\
        self.log = {}
        if self.log:
            self.log = {}
"""
