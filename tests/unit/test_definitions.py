"""Definitions are found in source text."""

from __future__ import annotations

import pytest

from megatron_patch.definitions import locate
from megatron_patch.errors import TargetError

TEXT = """
class A:
    @staticmethod
    def f(x):
        return x
"""


def test_lines_and_numbers_are_those_of_the_file():
    found = locate("m", TEXT, "A.f")
    assert found is not None
    assert found.first_line == 3
    assert found.segment.startswith("    @staticmethod\n    def f(")
    assert found.node.lineno == 4


@pytest.mark.parametrize("name", ["A.g", "B.f", "f", "A.f.g"])
def test_a_definition_that_is_not_there(name):
    assert locate("m", TEXT, name) is None


@pytest.mark.parametrize(
    ("text", "name", "why"),
    [
        ("def f(): 1\ndef f(): 2", "f", "m:f is defined 2 times"),
        ("class A: pass\nclass A: pass", "A.f", "m:A is defined 2 times"),
        ("class A:\n  class f: pass", "A.f", "m:A.f is a class"),
    ],
)
def test_what_is_not_one_function_is_refused(text, name, why):
    with pytest.raises(TargetError, match=why):
        locate("m", text, name)
