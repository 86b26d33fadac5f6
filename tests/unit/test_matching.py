"""Metavariables: what they stand for, and that it is put back as the source has it."""

from __future__ import annotations

import ast
import textwrap

import pytest

from megatron_patch.definitions import Definition, locate
from megatron_patch.edits import METAVARIABLE, Substitute
from megatron_patch.errors import RewriteError
from megatron_patch.fingerprint import canonical
from megatron_patch.matching import match, places
from megatron_patch.rewrite import edited
from megatron_patch.substituting import occurrences
from megatron_patch.undoing import undone


def code(text: str) -> str:
    """The code of a hunk as it is read: with names in the place of ``$name``."""
    return text.replace("$", METAVARIABLE)


def function(body: str) -> Definition:
    """A method with that body."""
    text = f"class Thing:\n    def one(self):\n{textwrap.indent(body, ' ' * 8)}"
    found = locate("m", text, "Thing.one")
    assert found is not None
    return found


def changed(body: str, find: str, put: str) -> str:
    """The body after one edit; checks that the edit can be undone."""
    before, edit = function(body), Substitute("m:Thing.one", code(find), code(put))
    after = edited(before, edit)
    whole = ast.dump(after.node)
    below = undone(after.node, [edit])
    assert isinstance(below, ast.FunctionDef)
    assert canonical(below) == canonical(before.node)
    assert ast.dump(after.node) == whole
    return textwrap.dedent(after.segment.partition("\n")[2])


def matched(pattern: str, found: str) -> dict[str, str] | None:
    (wanted,), (there,) = ast.parse(code(pattern)).body, ast.parse(found).body
    bindings = match(wanted, there)
    return bindings and {k.removeprefix(METAVARIABLE): ast.unparse(v) for k, v in bindings.items()}


@pytest.mark.parametrize(
    "device", ["'cpu'", "x", "torch.cuda.current_device()", "a if b else c", "lambda: 1", "[*a]"]
)
def test_a_metavariable_is_any_expression(device):
    assert matched("f(1, device=$device)", f"f(1, device={device})") == {
        "device": ast.unparse(ast.parse(device, mode="eval"))
    }


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("f($x)", "f()"),
        ("f($x)", "f(1, 2)"),
        ("f($x)", "f(x=1)"),
        ("f($x)", "g(1)"),
        ("f($x, 1)", "f(1, 2)"),
        ("f($x, 1)", "f(0, True)"),
        ("$x", "x = 1"),
        ("a.$x", "a.b.c"),
        ("$x + 1", "1 + x"),
    ],
)
def test_all_else_has_to_be_the_same(pattern, found):
    assert matched(pattern, found) is None


def test_a_metavariable_is_the_same_wherever_it_stands():
    assert matched("f($x, $x)", "f(a.b, a.b)") == {"x": "a.b"}
    assert matched("f($x, $x)", "f(a.b, a.c)") is None
    assert matched("f($x, $x)", "f(1, True)") is None
    assert matched("f($x, $y)", "f(1, 1)") == {"x": "1", "y": "1"}


def test_what_is_read_and_what_is_written_are_the_same_expression():
    assert matched("$x = f($x)", "a[0] = f(a[0])") == {"x": "a[0]"}
    assert matched("$x = f($x)", "a[0] = f(a[1])") is None


def test_a_name_that_is_no_metavariable_stands_for_itself():
    assert matched("f(x)", "f(y)") is None


def test_expressions_and_statements_are_found_in_all_blocks():
    node = function("if a:\n    f(1)\nelse:\n    for b in c:\n        f(2)\n").node
    expressions = places(node, code("f($x)"), code("g($x)"))
    statements = places(node, code("f($x)"), code("g($x)\nh()"))
    for found in (expressions, statements):
        values = [place.bindings[code("$x")] for place in found]
        assert sorted(ast.unparse(value) for value in values) == ["1", "2"]


def test_what_it_stands_for_is_put_back_as_it_is_written():
    body = "x = f(1)\nf( 0x10  ,'cpu')  # why\n"
    after = changed(body, "f($size, $device)", "g($device, $size)")
    assert after == "x = f(1)\ng('cpu', 0x10)  # why\n"


def test_it_may_be_put_several_times_and_into_other_statements():
    after = changed("total = a.b[c]\n", "total = $x", "if $x:\n    total = $x")
    assert after == "if a.b[c]:\n    total = a.b[c]\n"


def test_it_may_be_put_where_it_is_written_to():
    assert changed("f(a[0])\n", "f($x)", "$x = f($x)\ng()") == "a[0] = f(a[0])\ng()\n"
    assert changed("a.b = 1\n", "$x = 1", "f($x)\n$x = 2") == "f(a.b)\na.b = 2\n"


def test_several_lines_get_the_margin_of_the_line_where_they_are_put():
    body = """\
matched = torch.tensor(
    ids,  # those that match

    device=here(
        1,
    ),
)
"""
    after = changed(body, "matched = $x", "if ids:\n    matched = $x\n    use(matched)")
    assert after == (
        "if ids:\n"
        "    matched = torch.tensor(\n"
        "        ids,  # those that match\n"
        "\n"
        "        device=here(\n"
        "            1,\n"
        "        ),\n"
        "    )\n"
        "    use(matched)\n"
    )


def test_one_name_may_begin_as_another_does():
    assert changed("f(1, 2)\n", "f($a, $ab)", "f($ab, $a)") == "f(2, 1)\n"


def test_an_edit_that_would_bind_otherwise_is_put_in_parentheses_or_refused():
    assert changed("x = f(a) * 2\n", "f($x)", "$x + 1") == "x = (a + 1) * 2\n"
    edit = Substitute("m:Thing.one", code("f($x)"), code("$x.item()"))
    with pytest.raises(RewriteError, match="not the intended edit of the syntax tree"):
        edited(function("x = f(a + b)\n"), edit)


def test_a_string_of_several_lines_is_not_indented():
    edit = Substitute("m:Thing.one", code("f($x)"), code("if a:\n    f($x)"))
    with pytest.raises(RewriteError, match="not the intended edit"):
        edited(function('f("""a\n    b\n""")\n'), edit)


def test_two_places_are_too_many():
    edit = Substitute("m:Thing.one", code("f($x)"), code("g($x)"))
    definition = function("f(1)\nf(2)\n")
    assert occurrences(definition, edit) == 2
    with pytest.raises(RewriteError, match=r"expected `f\(\$x\)` exactly once; found 2 times"):
        edited(definition, edit)


def test_edits_that_are_there_with_different_expressions_are_not_undone():
    edit = Substitute("m:Thing.one", code("f($x)"), code("g($x, $x)"))
    assert undone(function("g(1, 2)\n").node, [edit]) is None
    assert undone(function("g(1, 1)\ng(2, 2)\n").node, [edit]) is None


def test_several_edits_with_metavariables_are_undone_in_their_order():
    first = Substitute("m:Thing.one", code("f($x)"), code("g($x)"))
    second = Substitute("m:Thing.one", code("$y = g($x)"), code("$y = h($y, g($x))"))
    before = function("a.b = f(c[0])\n")
    after = edited(edited(before, first), second)
    assert "a.b = h(a.b, g(c[0]))" in after.segment
    below = undone(after.node, [first, second])
    assert isinstance(below, ast.FunctionDef)
    assert canonical(below) == canonical(before.node)
