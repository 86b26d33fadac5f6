"""The file of differences beside a record: what is read from it, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_patch import hunks
from megatron_patch.definitions import locate
from megatron_patch.edits import METAVARIABLE, Add, Substitute
from megatron_patch.rewrite import edited

HEAD = """\
What the change is about: prose.

--- a/megatron/core/thing.py
+++ b/megatron/core/thing.py
"""
THING = "megatron.core.thing:Thing.one"


@pytest.fixture
def read(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A function that reads hunks as a record beside them does."""

    def read(text: str) -> hunks.Hunks:
        (tmp_path / "record.diff").write_text(text, encoding="utf-8")
        return hunks.beside(str(tmp_path / "record.py"))

    return read


def edits(read, text: str, variant: str = "any"):  # type: ignore[no-untyped-def]
    return read(HEAD + text).of(variant)


def test_lines_without_a_plus_are_found_and_those_without_a_minus_are_put(read):
    hunk = "@@ Thing.one @@\n before = 1\n-old = 2\n+new = 2\n+newer = 3\n after = 4\n"
    assert edits(read, hunk) == (
        Substitute(
            THING,
            "before = 1\nold = 2\nafter = 4\n",
            "before = 1\nnew = 2\nnewer = 3\nafter = 4\n",
        ),
    )


def test_a_hunk_of_removed_lines_puts_nothing(read):
    (edit,) = edits(read, "@@ Thing.one @@\n-old = 2\n")
    assert (edit.find, edit.put.strip()) == ("old = 2\n", "")


def test_a_hunk_of_added_lines_defines_a_helper(read):
    hunk = "@@ Thing._helper @@\n+def _helper(self):\n+    return 1\n"
    assert edits(read, hunk) == (
        Add("megatron.core.thing:Thing._helper", "def _helper(self):\n    return 1\n"),
    )


def test_hunks_keep_their_order_and_each_file_is_a_module(read):
    found = edits(
        read,
        "@@ Thing.one @@\n-a\n+b\n@@ _LIMIT @@\n+_LIMIT = 1\n"
        "--- a/megatron/core/other.py\n+++ b/megatron/core/other.py\n"
        "@@ Other.Inner.two @@\n-c\n+d\n",
    )
    assert [edit.target for edit in found] == [
        THING,
        "megatron.core.thing:_LIMIT",
        "megatron.core.other:Other.Inner.two",
    ]


def test_a_hunk_is_of_the_variants_that_it_names_or_of_all(read):
    found = read(
        f"{HEAD}@@ Thing.one @@ 0.17, 0.18\n-a\n+b\n@@ Thing.two @@\n-c\n+d\n"
        "@@ Thing.one @@ 0.19\n-e\n+f\n"
    )
    finds = {name: [edit.find for edit in found.of(name)] for name in ("0.17", "0.18", "0.19")}
    assert finds == {"0.17": ["a\n", "c\n"], "0.18": ["a\n", "c\n"], "0.19": ["c\n", "e\n"]}
    assert [hunk.variants for hunk in found.hunks] == [("0.17", "0.18"), (), ("0.19",)]


def test_a_variant_without_a_hunk_is_an_error(read):
    found = read(f"{HEAD}@@ Thing.one @@ 0.17\n-a\n+b\n")
    with pytest.raises(ValueError, match=r"record\.diff: no hunk is of variant '0\.18'"):
        found.of("0.18")


def test_blank_lines_inside_stay_and_those_around_go(read):
    (edit,) = edits(read, "@@ Thing.one @@\n\n-a\n+b\n\n c\n \n+d\n\n")
    assert (edit.find, edit.put) == ("a\n\nc\n", "b\n\nc\n\nd\n")


def test_prose_is_left_out_and_comments_of_the_code_are_not(read):
    (edit,) = edits(read, "# why\n@@ Thing.one @@\n# prose\n-a\n+# a comment\n+b\n# more\n")
    assert (edit.find, edit.put) == ("a\n", "# a comment\nb\n")


def test_a_metavariable_is_a_name_for_the_parser(read):
    (edit,) = edits(read, "@@ Thing.one @@\n-f($device, 1)\n+f(1, $device)\n")
    device = f"{METAVARIABLE}device"
    assert (edit.find, edit.put) == (f"f({device}, 1)\n", f"f(1, {device})\n")


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("@@ Thing.one\n-a\n+b\n", 5, "'@@ Thing.one': expected `@@ Class.method @@`"),
        ("@@Thing.one @@\n-a\n+b\n", 5, "expected `@@ Class.method @@`"),
        ("@@ Thing.one @@0.18\n-a\n+b\n", 5, "expected `@@ Class.method @@`"),
        ("@@ Thing.one @@ \n-a\n+b\n", 5, "expected `@@ Class.method @@`"),
        ("@@ -1,2 +1,2 @@\n-a\n+b\n", 5, "expected `@@ Class.method @@`, below `+++ b/path`"),
        ("@@ Thing.one @@\n-a\nb\n", 7, "'b': expected a line that begins with ' ', '+' or '-'"),
        ("@@ Thing.one @@\n-a\n\t+b\n", 7, "expected a line that begins with"),
        ("@@ Thing.one @@\n@@ Thing.two @@\n-a\n+b\n", 5, "the hunk is empty"),
        ("@@ Thing.one @@\n\n \n", 5, "the hunk is empty"),
        ("\n@@ Thing.one @@\n a\n b\n", 6, "the hunk changes nothing; a condition is a `Requires`"),
        ("@@ Thing.one @@\n-f($x)\n+f($y)\n", 5, "$x is on one side of the hunk only"),
        ("@@ Thing.one @@\n-f($x)\n+f()\n", 5, "$x is on one side of the hunk only"),
        ("@@ Thing.one @@\n-f()\n+f($y)\n", 5, "$y is on one side of the hunk only"),
        ("@@ Thing._one @@\n+_one = $x\n", 5, "what is added is code as it is, without `$`"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_and_line(read, text, line, what):
    with pytest.raises(ValueError, match=re.escape(what)) as caught:
        read(HEAD + text)
    assert re.search(rf"/record\.diff:{line}: ", str(caught.value))


def test_a_hunk_below_no_file_is_told(read):
    with pytest.raises(ValueError, match=r"record\.diff:1: .* below `\+\+\+ b/path`"):
        read("@@ Thing.one @@\n-a\n+b\n")


TEXT = """\
class Thing:
    def one(self):
        if self:
            return {
                "a": old(1), "b": 2,
            }
"""


def test_an_expression_of_several_lines_gets_the_margin_of_its_place(read):
    hunk = "@@ Thing.one @@\n-old(1)\n+new(\n+    1,\n+\n+    2,\n+)\n"
    (edit,) = edits(read, hunk)
    definition = locate("megatron.core.thing", TEXT, "Thing.one")
    assert definition is not None
    assert edited(definition, edit).segment == (
        "    def one(self):\n"
        "        if self:\n"
        "            return {\n"
        '                "a": new(\n'
        "                    1,\n"
        "\n"
        "                    2,\n"
        '                ), "b": 2,\n'
        "            }\n"
    )
