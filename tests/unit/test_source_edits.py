"""The edits as source text: what is written, where, and that all else stays byte for byte."""

from __future__ import annotations

import ast
import textwrap

import pytest

from megatron_patch.edits import Add, Before, Edit, Replace, Requires, Substitute
from megatron_patch.errors import DriftedError
from megatron_patch.fingerprint import canonical
from megatron_patch.model import Patch
from megatron_patch.source_edits import source_patches
from megatron_patch.verdicts import Judgement

from .sample import digest_in, make_patch
from .source_trees import MODULE, PATH, made, write

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
    """What one patch of these edits makes of the module."""
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
    """The ``old`` lines that the edits have left are in ``new`` as they were, in their order."""
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


def test_several_files_of_one_patch(tmp_path):
    write(tmp_path, TEXT, "megatron.core.other")
    tree = write(tmp_path, TEXT)
    other = substitute("Thing.one", "x + y", "x - y")._replace(
        target="megatron.core.other:Thing.one"
    )
    (patch,) = made(tree, [patch_of(substitute("Thing.one", "x + y", "x - y"), other)])
    assert [file.path for file in patch.files] == [PATH, "megatron/core/other.py"]
    assert patch.files[0].after == patch.files[1].after != patch.files[0].before


SERIES = (
    patch_of(substitute("Thing.one", "x + y", "x - y"), id="minus"),
    patch_of(prefix("Thing.one"), id="hook"),
    patch_of(substitute("Thing.fetch", "x + 1", "x + 2"), id="plus"),
    patch_of(substitute("Thing.one", "total += item", "total = item"), id="assign"),
)


def test_patches_of_one_file_and_one_method_are_made_on_top_of_each_other(tmp_path):
    patches = made(write(tmp_path, TEXT), SERIES)
    assert [(p.number, p.patch.id) for p in patches] == [
        (1, "minus"), (2, "hook"), (3, "plus"), (4, "assign"),
    ]  # fmt: skip
    files = [file for patch in patches for file in patch.files]
    assert len(files) == 4
    assert files[0].before == TEXT.encode()
    assert [file.before for file in files[1:]] == [file.after for file in files[:-1]]
    expected = TEXT.replace("( x+y )", "( x - y )").replace("total += item", "total = item")
    expected = expected.replace("x + 1", "x + 2")
    expected = expected.replace("        # about total\n", HOOK_TEXT + "        # about total\n")
    assert files[-1].after.decode() == expected


def test_what_is_selected_keeps_its_number_and_its_place(tmp_path):
    tree = write(tmp_path, TEXT)
    patches = made(tree, SERIES, ["assign", "hook"])
    assert [(p.number, p.patch.id) for p in patches] == [(2, "hook"), (4, "assign")]
    assert patches[0].files[0].before == TEXT.encode()


def test_what_is_not_needed_is_left_out_with_its_state_and_reason(tmp_path):
    fetch = f"{MODULE}:Thing.fetch"
    gone = patch_of(prefix("Thing.one"), id="gone")._replace(target=f"{MODULE}:Thing.gone")
    fixed = patch_of(prefix("Thing.fetch"), id="fixed", has_it={fetch: digest_in(TEXT)(fetch)})
    series = (gone, fixed, *SERIES)
    patches, skipped = source_patches(write(tmp_path, TEXT), series, ["gone", "fixed", "minus"])
    assert [(p.number, p.patch.id) for p in patches] == [(3, "minus")]
    assert [(s.patch.id, s.judgement) for s in skipped] == [
        ("gone", Judgement.NOT_APPLICABLE), ("fixed", Judgement.UPSTREAMED),
    ]  # fmt: skip
    assert "Thing.gone does not exist" in skipped[0].reason
    assert "9.9 and later" in skipped[1].reason


DRIFTED = TEXT.replace("return total *", "return total +")


def test_drift_of_one_patch_makes_nothing_and_names_patch_and_target(tmp_path):
    with pytest.raises(DriftedError) as caught:
        made(write(tmp_path, DRIFTED), SERIES)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["minus", "hook", "assign"]
    assert all(f"{MODULE}:Thing.one: expected " in line for line in lines)


def test_drift_of_what_is_not_selected_does_not_matter(tmp_path):
    (patch,) = made(write(tmp_path, DRIFTED), SERIES, ["plus"])
    assert patch.files[0].after.decode() == DRIFTED.replace("x + 1", "x + 2")


def test_with_allow_drift_unknown_source_is_edited_where_the_edits_fit(tmp_path):
    tree = write(tmp_path, DRIFTED)
    patches, _ = source_patches(tree, SERIES, ["minus", "hook", "plus"], allow_drift=True)
    assert [p.number for p in patches] == [1, 2, 3]
    expected = DRIFTED.replace("x+y", "x - y").replace("x + 1", "x + 2")
    expected = expected.replace("        # about total\n", HOOK_TEXT + "        # about total\n")
    assert patches[-1].files[0].after.decode() == expected


@pytest.mark.parametrize(
    ("edit", "old", "new", "why"),
    [
        (substitute("Thing.one", "x + y", "x"), "x+y", "x*y", "expected `x + y` exactly once; not"),
        (whole("Thing.one", one), "self, x,", "self, x, z,", "the signature is (self, x, z,"),
        (prefix("Thing.one"), "def one(self", "def one(this", "the hook takes ['self']"),
    ],
)
def test_allow_drift_says_why_an_edit_does_not_fit(tmp_path, edit, old, new, why):
    patch = patch_of(edit, id="minus")
    tree = write(tmp_path, TEXT.replace(old, new))
    with pytest.raises(DriftedError) as caught:
        source_patches(tree, [patch, *SERIES[1:]], ["minus", "plus"], allow_drift=True)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"minus: {MODULE}:Thing.one: ")
    assert why in line


@pytest.mark.parametrize("end", [b"def", b"# \xff", b"\x00"])
@pytest.mark.parametrize("allow_drift", [False, True])
def test_a_file_that_does_not_parse_is_drifted(tmp_path, end, allow_drift):
    tree = write(tmp_path, TEXT.encode() + end)
    with pytest.raises(DriftedError, match=r"minus: .*does not parse"):
        source_patches(tree, SERIES, ["minus"], allow_drift=allow_drift)


def test_patches_that_do_not_fit_on_top_of_each_other_are_told(tmp_path):
    clash = patch_of(substitute("Thing.one", "x + y", "x * y"), id="clash")
    with pytest.raises(DriftedError) as caught:
        made(write(tmp_path, TEXT), [*SERIES, clash])
    assert str(caught.value).startswith(f"clash: {MODULE}:Thing.one: expected `x + y` exactly once")


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
    alone = patch_of(add("Other._helper", _helper), substitute("Thing.one", "x + y", "x"))
    with pytest.raises(DriftedError, match="no edit of Other to put a helper next to"):
        made(write(tmp_path, TEXT), [alone])
    text = TEXT[TEXT.index("class Thing") :] + "import os\n"
    limit = patch_of(add("_LIMIT", "_LIMIT = 4"), substitute("Thing.one", "x + y", "x"))
    with pytest.raises(DriftedError, match=f"{MODULE}: there are no imports to put a helper below"):
        made(write(tmp_path, text), [limit])


def test_imports_at_the_end_of_a_file_are_not_those_at_its_top(tmp_path):
    edits, expected = result_of("add an assignment, below the imports")
    end = "\n\nimport late\n"
    assert after(tmp_path, TEXT + end, *edits).decode() == expected + end
