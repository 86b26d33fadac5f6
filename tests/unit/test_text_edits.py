"""The edits as source text: what is written, where, and that all else stays byte for byte."""

from __future__ import annotations

import ast
import textwrap

import pytest

from megatron_patch.definitions import locate
from megatron_patch.edits import Edit
from megatron_patch.errors import DriftedError
from megatron_patch.fingerprint import canonical
from megatron_patch.rewrite import edited

from .source_trees import MODULE, PATH, made, write
from .thing import (
    HELPER_TEXT,
    HOOK_TEXT,
    SAME,
    TEXT,
    _function,
    _helper,
    _Holder,
    add,
    decorated,
    one,
    one_line,
    patch_of,
    prefix,
    requires,
    substitute,
    whole,
)

CASES = {
    "replace": (
        [whole("Thing.one", one)],
        TEXT[TEXT.index('        """Doc of one') : TEXT.index("    @property")],
        '        """Doc of ours."""\n'
        "        # a comment of ours\n"
        "        first: int = x\n\n"
        "        return first + y\n\n",
    ),
    "replace below decorators": (
        [whole("Thing.decorated", decorated)],
        "        return 7\n",
        "        return 77\n",
    ),
    "replace on one line": (
        [whole("Thing.one_line", one_line)],
        "    def one_line(self): return 1  # on one line\n",
        "    def one_line(self):\n        return 11\n",
    ),
    "before, below the docstring and above a comment": (
        [prefix("Thing.one")],
        "        # about total\n",
        HOOK_TEXT + "        # about total\n",
    ),
    "before on one line": (
        [prefix("Thing.one_line")],
        "    def one_line(self): return 1  # on one line\n",
        f"    def one_line(self):\n{HOOK_TEXT}        return 1  # on one line\n",
    ),
    "before in a coroutine": (
        [prefix("Thing.fetch")],
        "        result = x + 1\n",
        HOOK_TEXT + "        result = x + 1\n",
    ),
    "before in a class in a class": (
        [prefix("Thing.Inner.method")],
        "            return 2\n",
        textwrap.indent(HOOK_TEXT, "    ") + "            return 2\n",
    ),
    "substitute an expression": (
        [substitute("Thing.one", "x + y", "x - y")],
        "( x+y )",
        "( x - y )",
    ),
    "substitute an expression that needs parentheses": (
        [substitute("function", "x", "x or 1")],
        "return x-1",
        "return (x or 1)-1",
    ),
    "substitute a statement": (
        [substitute("Thing.one", "total += item", "total += 2 * item\nself.log = total")],
        "            total += item\n",
        "            total += 2 * item\n            self.log = total\n",
    ),
    "substitute nothing for a statement": (
        [substitute("Thing.fetch", "result = x + 1", "")],
        "        result = x + 1\n",
        "",
    ),
    "substitute in the last definition": (
        [substitute("Other.last", "4", "44")],
        "return 4",
        "return 44",
    ),
    "add to a class, above the comment of the first target": (
        [add("Thing._helper", _helper), requires("Thing.one")],
        "    # about one\n    def one(self, x, *, y: int = 3) -> int:  # on the signature\n",
        HELPER_TEXT
        + "    # about one\n    def one(self, x, *, y: int = 3) -> int:  # on the signature\n",
    ),
    "add to a class, above decorators": (
        [add("Thing._helper", _helper), requires("Thing.decorated")],
        "    @property\n",
        HELPER_TEXT + "    @property\n",
    ),
    "add two helpers in their order": (
        [
            add("Thing._first", "_first = 1"),
            requires("Thing.fetch"),
            add("Thing._helper", _helper),
        ],
        "    async def fetch(",
        f"    _first = 1\n\n{HELPER_TEXT}    async def fetch(",
    ),
    "add to a class in a class": (
        [add("Thing.Inner._first", "_first = 1"), requires("Thing.Inner.method")],
        "        def method(self):\n",
        "        _first = 1\n\n        def method(self):\n",
    ),
    "add to a class, below the target that a default names": (
        [add("Thing._same", SAME), requires("Thing.one_line")],
        "    def one_line(self): return 1  # on one line\n",
        "    def one_line(self): return 1  # on one line\n\n"
        "    @classmethod\n    def _same(cls, of=one_line):\n        return of\n",
    ),
    "add to the module, above the class of the first target": (
        [add("_function", _function), requires("Thing.fetch")],
        "# What a thing is.\n",
        "def _function(x: int) -> int:\n    return x\n\n\n# What a thing is.\n",
    ),
    "add a function that a hunk defines, above the class of the first target": (
        [add("_function", "def _function(x):\n    return x\n"), requires("Thing.fetch")],
        "# What a thing is.\n",
        "def _function(x):\n    return x\n\n\n# What a thing is.\n",
    ),
    "add to the module, above a function": (
        [add("_function", _function), requires("function")],
        "@functools.lru_cache(",
        "def _function(x: int) -> int:\n    return x\n\n\n@functools.lru_cache(",
    ),
    "add a class": (
        [add("_Holder", _Holder), requires("Other.last")],
        "class Other:\n",
        'class _Holder:\n    """Holds."""\n\n    x = 1\n\n\nclass Other:\n',
    ),
    "add an assignment, below the imports": (
        [add("_LIMIT", "_LIMIT: int = (\n    4\n)"), requires("Thing.fetch")],
        "import functools  # used below\n",
        "import functools  # used below\n\n_LIMIT: int = (\n    4\n)\n",
    ),
}


def after(root, text: str | bytes, *edits: Edit) -> bytes:  # type: ignore[no-untyped-def]
    """The module's text after one patch with these edits."""
    (patch,) = made(write(root, text), [patch_of(*edits)])
    (file,) = patch.files
    assert file.path == PATH
    assert file.before == (text if isinstance(text, bytes) else text.encode())
    return file.after


def result_of(name: str) -> tuple[list[Edit], str]:
    edits, old, new = CASES[name]
    assert TEXT.count(old) == 1
    return edits, TEXT.replace(old, new)


@pytest.mark.parametrize("name", CASES)
def test_the_edit_is_this_text_and_nothing_else_changes(tmp_path, name):
    edits, expected = result_of(name)
    assert after(tmp_path, TEXT, *edits).decode() == expected


# An @ that is not in the line of what it puts around the function.
APART = ["@ \\\n    property", "@(  # an @\n        property\n    )"]


@pytest.mark.parametrize("decorator", APART)
@pytest.mark.parametrize("name", ["replace below decorators", "add to a class, above decorators"])
def test_an_at_sign_may_stand_above_its_decorator(tmp_path, name, decorator):
    edits, expected = result_of(name)
    text = TEXT.replace("@property", decorator)
    assert after(tmp_path, text, *edits).decode() == expected.replace("@property", decorator)


@pytest.mark.parametrize("decorator", APART)
def test_a_hook_stands_above_the_at_sign_of_the_first_statement(decorator):
    above = "class Thing:\n    def one(self):\n"
    below = textwrap.indent(f"    {decorator}\n    def f(): pass\n    return f\n", "    ")
    found = locate("m", above + below, "Thing.one")
    assert found is not None
    assert (
        above.partition("\n")[2] + HOOK_TEXT + below == edited(found, prefix("Thing.one")).segment
    )


# Cases whose edits one patch can make all at once. The first is the one that helpers go by.
TOGETHER = (
    "add to a class, above the comment of the first target",
    "add to the module, above the class of the first target",
    "add an assignment, below the imports",
    "substitute a statement",
    "replace below decorators",
    "before on one line",
    "before in a coroutine",
    "before in a class in a class",
    "substitute an expression that needs parentheses",
    "substitute in the last definition",
)


def together() -> tuple[list[Edit], str]:
    edits: list[Edit] = []
    expected = TEXT
    for name in TOGETHER:
        edits += CASES[name][0]
        expected = expected.replace(*CASES[name][1:])
    return edits, expected


# How a text is written to a file, with a line or two of the file's own.
FORMS = {
    "as it is": str.encode,
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "carriage returns alone": lambda text: text.replace("\n", "\r").encode(),
    "no newline at the end": lambda text: text.rstrip("\n").encode(),
    "crlf, no newline at the end": lambda text: text.rstrip("\n").replace("\n", "\r\n").encode(),
    "byte order mark": lambda text: text.encode("utf-8-sig"),
    "coding cookie": lambda text: (
        text.replace("# Copyright.", "# coding: latin-1")
        .replace("# on total", "# \xe9")
        .encode("latin-1")
    ),
    "characters of more than one byte": lambda text: text.replace(
        "# on total", "# \u20ac\U0001f600"
    ).encode(),
    "form feeds and the like": lambda text: (
        text.replace("# Copyright.", "\f\n# \x1c \x85 \u2028")
        .replace("# on total", "# \f \x1c \x85 \u2028")
        .encode()
    ),
    "trailing blanks": lambda text: text.replace("LIMIT = 3\n\n", "LIMIT = 3 \t\n  \n").encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_the_file_stays(tmp_path, form):
    edits, expected = together()
    write_as = FORMS[form]
    assert after(tmp_path, write_as(TEXT), *edits) == write_as(expected)


def assert_kept(old: list[str], new: list[str], expected: str) -> None:
    """The lines of ``old`` that the edits leave alone are in ``new``, unchanged and in order."""
    left = iter(new)
    bare = [line.strip() for line in expected.splitlines()]
    kept = [line for line in old if line.strip() in bare]
    assert len(kept) >= len(old) - 6
    assert all(line in left for line in kept)


def test_a_file_that_mixes_line_ends(tmp_path):
    edits, expected = together()
    ends = ("\r\n", "\n", "\r\n", "\r\n")
    mixed = [line + ends[row % 4] for row, line in enumerate(TEXT.splitlines())]
    new = after(tmp_path, "".join(mixed).encode(), *edits).decode()
    assert new.replace("\r\n", "\n") == expected
    assert_kept(mixed, new.splitlines(True), expected)


def test_a_file_that_is_indented_with_tabs(tmp_path):
    edits, expected = together()
    text = TEXT.replace("    ", "\t")
    new = after(tmp_path, text, *edits).decode()
    assert canonical(ast.parse(new)) == canonical(ast.parse(expected))
    assert_kept(text.splitlines(), new.splitlines(), expected)


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("Thing.LIMIT", "LIMIT = 4"),
        ("Thing.fetch", _helper),
        ("Thing.Inner", "Inner = 4"),
        ("functools", "functools = None"),
        ("os", "os = None"),
        ("Other", "Other = None"),
    ],
)
def test_a_helper_does_not_take_the_name_of_something_else(tmp_path, name, definition):
    patch = patch_of(add(name, definition), substitute("Thing.one", "x + y", "x"))
    with pytest.raises(DriftedError, match=f"sample: {MODULE}:{name}: the name is taken"):
        made(write(tmp_path, TEXT), [patch])


def test_a_helper_needs_a_target_or_imports_to_stand_next_to(tmp_path):
    alone = patch_of(add("Absent._helper", _helper), substitute("Thing.one", "x + y", "x"))
    with pytest.raises(DriftedError, match="no method of Absent to put a helper next to"):
        made(write(tmp_path, TEXT), [alone])
    text = TEXT[TEXT.index("class Thing") :] + "import os\n"
    limit = patch_of(add("_LIMIT", "_LIMIT = 4"), substitute("Thing.one", "x + y", "x"))
    with pytest.raises(DriftedError, match=f"{MODULE}: there are no imports to put a helper below"):
        made(write(tmp_path, text), [limit])


def test_a_helper_of_a_class_without_edits_stands_above_its_last_method(tmp_path):
    helper, edit = add("Other._helper", _helper), substitute("Thing.one", "x + y", "x")
    text = TEXT.replace(
        "class Other:\n", "class Other:\n    def first(self):\n        return 2\n\n"
    )
    found = after(tmp_path, text, helper, edit).decode()
    last = found.index("    def last(self)")
    assert found[:last].endswith(HELPER_TEXT)
    assert found[:last].removesuffix(HELPER_TEXT).endswith("        return 2\n\n")


def test_imports_at_the_end_of_a_file_are_not_those_at_its_top(tmp_path):
    edits, expected = result_of("add an assignment, below the imports")
    end = "\n\nimport late\n"
    assert after(tmp_path, TEXT + end, *edits).decode() == expected + end
