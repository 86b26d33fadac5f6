"""What changes a digest, and what does not."""

from __future__ import annotations

import ast

import pytest

from megatron_patch.definitions import locate
from megatron_patch.fingerprint import canonical, equal

TEXT = '''
class A:
    @staticmethod
    def f(x, *, y=1):
        """Doc."""
        # why
        return f"{x!r:>{y}} and {{}}" + "a" "b"
'''


def digest(text: str, name: str = "A.f") -> str:
    found = locate("m", text, name)
    assert found is not None
    return found.digest


def test_the_digest_is_this_one_on_every_python():
    assert digest(TEXT) == "552ea3a65a4a068c"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# why", "# another reason"),
        ('        """Doc."""\n', ""),
        ('"""Doc."""', '"""Other."""'),
        ("x, *, y=1", "x,\n          *,\n          y = 1,"),
        ('"a" "b"', "'ab'"),
        ("class A:", "import os\n\n\nclass A:\n    other = 1\n"),
        ("\n", "\r\n"),
        ("        return", "\n        return"),
        ("return f", "return (f"),
    ],
)
def test_what_means_the_same_has_the_same_digest(old, new):
    text = TEXT.replace(old, new)
    if new.endswith("(f"):
        text = text.replace('"a" "b"', '"a" "b")')
    assert text != TEXT
    assert digest(text) == digest(TEXT)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("y=1", "y=2"),
        ("y=1", "y=1.0"),
        ("y=1", "y=True"),
        ("x, *,", "x,"),
        ("x!r", "x!s"),
        (":>", ":<"),
        ('"a" "b"', '"a" "c"'),
        ("@staticmethod", "@classmethod"),
        ("    @staticmethod\n", ""),
        ("def f", "async def f"),
        ("return f", "yield f"),
    ],
)
def test_what_means_something_else_has_another_digest(old, new):
    text = TEXT.replace(old, new)
    assert text != TEXT
    assert digest(text) != digest(TEXT)


def test_a_string_that_is_no_docstring_counts():
    assert digest("def f():\n    x\n    'a'", "f") != digest("def f():\n    x\n    'b'", "f")


SNIPPETS = (
    *(f'def f(a, b=1):\n    """{doc}"""\n    return a' for doc in ("One.", "Other.")),
    *("def f(a, b=1):\n    return a", "def f(a, b=1): return b", "async def f(a, b=1): return a"),
    *("x = 1", "x = 1.0", "x = 1e0", "x = True", "x: int = 1", "y = 1", "x = 1; y = 1", "x = -1"),
    *("x = 'ab'", "x = u'ab'", "x = 'a' 'b'", "x = b'ab'", "x = None", "x", "del x", "x.y", "x()"),
    *("f'{a}b'", "f'{a}' 'b'", "f'{a:}b'", "f'{a!s}b'", "f'{a:>{b}}'", "f'{a:>{c}}'"),
    *("[]", "()", "{}", "[x]", "(x,)", "x[1:]", "x[:1]", "x if y else z", "z if y else x"),
    *("if x: y", "while x: y", "with x: y", "with x as y: y", "for x in y: pass", "pass"),
)


def test_trees_are_equal_where_their_canonical_forms_are():
    trees = [ast.parse(snippet) for snippet in SNIPPETS]
    answers = {(one, other): equal(one.body, other.body) for one in trees for other in trees}
    for (one, other), answer in answers.items():
        same = canonical(one.body) == canonical(other.body)
        assert answer is same, (ast.unparse(one), ast.unparse(other))
    # Some that are written otherwise are among them.
    assert sum(answers.values()) > len(trees) + 10
