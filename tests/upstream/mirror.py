"""The mark of a mirrored test: which test of upstream it follows, and which version of it.

The tests of this directory have the paths and names of upstream's, below its
`tests/unit_tests/inference`, and their own contents. `tools/mirror_report.py` reads the marks and
says what upstream has added or changed since.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def mirrors(path: str, test: str, *, digest: str) -> Callable[[F], F]:
    """Mark a test as the mirror of one of upstream's. Changes nothing: the mark is in the source.

    Args:
        path: upstream's file, below `tests/unit_tests`, without a leading `inference/`.
        test: `Class.test_name` or `test_name`.
        digest: fingerprint of upstream's test when this mirror was last compared with it.

    All three have to be literals, because the report does not import this.
    """
    return lambda function: function
