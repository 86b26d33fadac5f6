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


def digest(text: str, name: str) -> str:
    found = locate("m", text, name)
    assert found is not None
    return found.digest


IN_A_TRY = """
try:
    import os

    def f():
        return 1

except ImportError:

    def g():
        return 2
"""


def test_a_function_in_a_try_is_found():
    found = locate("m", IN_A_TRY, "f")
    assert found is not None
    assert found.segment == "    def f():\n        return 1\n"
    assert found.first_line == 5
    assert found.digest == digest("def f():\n    return 1\n", "f")
    assert found.imported_names == ("os",)


def test_a_function_beside_a_try_comes_first():
    text = IN_A_TRY + "\n\ndef f():\n    return 3\n"
    assert digest(text, "f") == digest("def f():\n    return 3\n", "f")


@pytest.mark.parametrize("name", ["g", "A.f"])
def test_what_handles_an_error_is_not_looked_at(name):
    assert locate("m", IN_A_TRY, name) is None


def test_two_in_tries_are_ambiguous():
    with pytest.raises(TargetError, match="2 times"):
        locate("m", IN_A_TRY + IN_A_TRY, "f")
