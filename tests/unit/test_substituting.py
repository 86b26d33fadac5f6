"""Several hunks of one function give the same text with one proof for all as one by one."""

from __future__ import annotations

import pytest

from megatron_patch import substituting
from megatron_patch.definitions import Definition, locate
from megatron_patch.edits import Substitute
from megatron_patch.errors import RewriteError
from megatron_patch.rewrite import edited

TEXT = """
class A:
    def f(self, x):
        y = x * 2  # about y
        z = y - 1

        # about the rest
        if z:
            self.log(z)
        for item in (x, y):
            self.log(item)
            self.count += item
        total = self.one + self.two
        return x * z
"""

# Hunks, and whether one proof is enough for all of them.
CASES = {
    "apart": ([("y - 1", "y + 1"), ("self.log(item)", "pass"), ("return x * z", "return z")], True),
    "from the last to the first": ([("return x * z", "return z"), ("y - 1", "y + 1")], True),
    "in one line": ([("self.one", "self.three"), ("self.two", "self.four.five")], True),
    "next to each other": ([("y = x * 2", "y = x"), ("z = y - 1", "z = y")], True),
    "nothing in the places of neighbours": ([("y = x * 2", ""), ("z = y - 1", "")], True),
    "more lines than there were": (
        [("z = y - 1", "z = y\nz -= 1"), ("if z: self.log(z)", "")],
        True,
    ),
    "one in what another has put": ([("y - 1", "y - x"), ("y - x", "y + x")], False),
    "one around another": ([("self.log(z)", "self.log(x)"), ("if z: self.log(x)", "x = z")], False),
    "one that is there once only after another": (
        [("x * 2", "x"), ("self.log(z)", "self.log(x * 2)"), ("x * 2", "x")],
        False,
    ),
}


def definition() -> Definition:
    found = locate("m", TEXT, "A.f")
    assert found is not None
    return found


def hunks(pairs: list[tuple[str, str]]) -> list[Substitute]:
    return [Substitute("m:A.f", find, put) for find, put in pairs]


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_that_of_one_by_one(name):
    pairs, one_proof = CASES[name]
    edits = hunks(pairs)
    assert (substituting._together(definition(), edits) is not None) is one_proof
    expected = definition()
    for edit in edits:
        expected = edited(expected, edit)
    result = edited(definition(), *edits)
    assert result.segment == expected.segment != definition().segment
    assert result.digest == expected.digest


def test_parentheses_are_put_where_one_of_several_needs_them():
    edits = hunks([("y - 1", "y"), ("x * z", "(x or 1) * z"), ("x * 2", "x and y")])
    assert "y = x and y" in edited(definition(), *edits).segment
    edits = hunks([("z = y - 1", "z = y * 3"), ("y", "x or y")])
    found = locate("m", "def f(x, y):\n    z = y - 1\n    return x\n", "f")
    assert found is not None
    assert "z = (x or y) * 3" in edited(found, *edits).segment


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([("y - 1", "y"), ("y - 1", "y + 1")], "expected `y - 1` exactly once; not found"),
        ([("y - 1", "x * 2"), ("x * 2", "x")], "expected `x [*] 2` exactly once; found 2 times"),
        ([("y - 1", "y"), ("self.log(z)", "")], "`self.log\\(z\\)` is all of its block"),
    ],
)
def test_what_does_not_fit_is_named(pairs, why):
    with pytest.raises(RewriteError, match=why):
        edited(definition(), *hunks(pairs))


def test_a_statement_that_shares_its_line_is_refused_in_text():
    found = locate("m", "def f(): return 1\n", "f")
    assert found is not None
    with pytest.raises(RewriteError, match="m:f: `return 1` shares its line with other code"):
        edited(found, Substitute("m:f", "return 1", "return 5"))
