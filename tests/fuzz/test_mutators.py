"""The mutators do what they say, in every place of a function with much syntax."""

from __future__ import annotations

import ast

import pytest

from .code import Code, Edit, functions, meaning, reduced
from .mutators import CHANGING, MISPLACING, NEUTRAL

TEXT = '''
from __future__ import annotations

import math


class Before:
    def f(self):
        return 0


class A(Before):
    """Of the class."""

    factor = 2

    @property
    @math.decorate(1, a="b")
    def f(self, x: int, /, y=1, *args, z: str = "é", w, **kwargs) -> list[int]:
        """Doc."""
        # why
        global count
        from os import path as p

        count = 0x10 + 1.5 - -x  # at the end
        text = f"{x!r:>{y}} and {{}}" + "a" 'b' + rf"\\d{y}"
        if x and not y or z is None:
            count += 1
            return None
        elif x == 1:
            print(
                text,  # what
                f"{x}"
                f"{y}",
                sep="",
                *args
            )
        else:
            for i in (j for j in range(x) if j % 2):
                if i > 3:
                    break
                continue
            else:
                del i

        def inner(a, b=2):
            """Inner doc."""
            return a if b else lambda q: (q, b)

        with open("é世") as stream, stream:
            try:
                assert stream[1:x, 2] <= 3, "no"
            except (OSError, ValueError) as error:
                raise error from None
            finally:
                pass
        match x:
            case {"k": 1, **rest} if rest:
                pass
            case math.pi:
                y = yield b"bytes"
        return sum(i for i in args), [*args, inner(x, y)]

    async def g(self):
        await self.f

    def last(self): return """one
two"""
'''
ASYNC = "async def g(self, *, k=None):\n    x = await self.f()\n    return x\n"
CODES = [Code(TEXT, "A.f"), Code(ASYNC, "g")]
MEANINGS = {code: meaning(code.text, code.qualname) for code in CODES}


def edits(mutator, code):  # type: ignore[no-untyped-def]
    found = list(mutator(code))
    assert all(0 <= edit.start <= edit.end <= len(code.text) for edit in found)
    return [(edit, code.edited(edit)) for edit in found]


@pytest.mark.parametrize("mutator", CHANGING + MISPLACING)
def test_a_changing_mutator_gives_another_tree(mutator):
    number = 0
    for code in CODES:
        for edit, text in edits(mutator, code):
            number += 1
            assert meaning(text, code.qualname) != MEANINGS[code], edit
    assert number


@pytest.mark.parametrize("mutator", NEUTRAL)
def test_a_neutral_mutator_changes_text_and_not_the_tree(mutator):
    number = 0
    for code in CODES:
        for edit, text in edits(mutator, code):
            number += text != code.text
            assert meaning(text, code.qualname) == MEANINGS[code], edit
    assert number


def test_each_edit_is_made_once():
    for code in CODES:
        for mutator in CHANGING:
            found = list(mutator(code))
            assert len(found) == len(set(found)), mutator


def test_meaning_is_that_of_every_definition_of_the_name_without_docstrings():
    assert meaning(TEXT, "A.h") == meaning(TEXT, "B.f") == ()
    assert len(meaning("def f(): 1\ndef f(): 2", "f")) == 2
    assert meaning("def f():\n 'a'\n u'b'", "f") == meaning("def f():\n 'c'\n 'b'", "f")
    assert meaning("def f():\n 'a'\n 'b'", "f") != meaning("def f():\n 'a'\n 'c'", "f")


def test_a_reduced_text_keeps_what_was_asked_for_and_what_is_no_function():
    text = reduced(TEXT, {"A.g"})
    assert [name for name, _ in functions(ast.parse(text))] == ["A.g"]
    assert meaning(text, "A.g") == meaning(TEXT, "A.g")
    assert "import math" in text
    assert "factor = 2" in text
    assert "class Before" not in text


def test_offsets_are_of_characters():
    code = Code("é = 1\ndef f(): return 'é', 2\n", "f")
    (value,) = (n for n in code.nodes() if isinstance(n, ast.Constant) and n.value == 2)
    assert code.edited(code.replaced(value, "3")).endswith("'é', 3\n")
    assert code.edited(Edit(0, 1, "e")).startswith("e = 1")
