"""Edits of a tree, which make what those of the text make, and give it the numbers of its lines."""

from __future__ import annotations

import ast

import pytest

from megatron_patch import rewrite, tree_edits
from megatron_patch.definitions import Definition, locate
from megatron_patch.edits import METAVARIABLE, Before, Replace, Substitute
from megatron_patch.errors import RewriteError
from megatron_patch.fingerprint import equal
from megatron_patch.line_numbers import File

from .test_substituting import CASES, TEXT, hunks


def definition(text: str = TEXT, name: str = "A.f") -> Definition:
    found = locate("m", text, name)
    assert found is not None
    return found


def edited(found: Definition, *edits, text: str = TEXT):  # type: ignore[no-untyped-def]
    before = ast.dump(found.node, include_attributes=True)
    file = File("m.py", text)
    tree = tree_edits.edited(found, found.node, edits, file, "ours")
    assert ast.dump(found.node, include_attributes=True) == before
    # The compiler takes it, positions and all.
    compile(ast.Module([tree], []), "m.py", "exec")
    return tree, file


@pytest.mark.parametrize("name", CASES)
def test_the_tree_is_that_of_the_edited_text(name):
    edits = hunks(CASES[name][0])
    tree, _ = edited(definition(), *edits)
    assert equal(tree, rewrite.edited(definition(), *edits).node)


def hook(self) -> None:
    self.seen = None


def other_hook(item) -> None:
    item.seen = None


def replacement(self, x):
    """What it does.

    And what not.
    """
    # about nothing
    return x


def test_hooks_and_replacements():
    for edit in (Before("m:A.f", hook), Replace("m:A.f", replacement)):
        tree, file = edited(definition(), edit)
        text = rewrite.edited(definition(), edit)
        assert equal(tree, text.node)
        assert ast.get_docstring(tree, clean=False) == ast.get_docstring(text.node, clean=False)
        size = len(TEXT.splitlines())
        assert [
            line for line in file.lines[size:] if "self.seen = None" in line or "return x" in line
        ]
    several = [Before("m:A.f", hook), Substitute("m:A.f", "self.seen = None", "self.seen = x")]
    tree, _ = edited(definition(), *several)
    assert equal(tree, rewrite.edited(definition(), *several).node)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (Substitute("m:A.f", "y - 7", "y"), "m:A.f: expected `y - 7` exactly once; not found"),
        (Substitute("m:A.f", "item", "x"), "found 2 times"),
        (Substitute("m:A.f", "self.log(z)", ""), "put `pass`"),
        (Before("m:A.f", other_hook), r"the target's first is \['self'\]"),
        (Replace("m:A.f", hook), "the signature is"),
    ],
)
def test_what_does_not_fit_is_refused_as_it_is_in_the_text(edit, why):
    with pytest.raises(RewriteError, match=why) as caught:
        edited(definition(), edit)
    with pytest.raises(RewriteError) as of_text:
        rewrite.edited(definition(), edit)
    assert str(caught.value) == str(of_text.value)


def test_a_metavariable_keeps_the_lines_of_what_it_stands_for():
    text = "def f(x):\n    y = g(\n        x,\n        1,\n    )\n    return y\n"
    found = definition(text, "f")
    name = f"{METAVARIABLE}call"
    tree, file = edited(found, Substitute("m:f", f"y = {name}", f"y = h({name})"), text=text)
    (call,) = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and n.func.id == "g"]  # type: ignore[attr-defined]
    assert (call.lineno, call.end_lineno, call.col_offset) == (2, 5, 8)
    assert tree.body[0].lineno == 7
    assert file.lines[6:] == ["# ours: y = h(g(x, 1))\n"]
