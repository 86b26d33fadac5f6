"""What `check --diff` shows of source that is not known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_patch.differences import WIDTH, differences
from megatron_patch.edits import METAVARIABLE, Before, Edit, Replace, Requires, Substitute
from megatron_patch.judge import judge

from .sample import digest_in, make_patch
from .source_trees import MODULE, PATH, write
from .trees import ID, command, write_patchable_tree, write_tree

TEXT = '''
class Thing:
    def one(self, x, device):
        """Doc."""
        first = self.begin(x)
        for item in x:
            total = self.add(item, device=device)
            self.keep(total)
        return self.end(first)  # as it is

    def two(self):
        return 2
'''
ONE = f"{MODULE}:Thing.one"
TWO = f"{MODULE}:Thing.two"
ADD = Substitute(
    ONE,
    f"total = self.add(item, device={METAVARIABLE}d)\nself.keep(total)\n",
    f"self.keep(self.add(item, device={METAVARIABLE}d))\n",
)
END = Substitute(ONE, "self.end(first)", "self.end(first, 1)")


def shown(root: Path, text: str, edits: Sequence[Edit], against: str | None = None) -> list[str]:
    patch = make_patch(*edits, known=digest_in(TEXT))
    tree = write(root / "fork", text)
    other = None if against is None else write(root / "known", against)
    lines = differences(judge(patch, tree.read), tree, other).splitlines()
    assert all(len(line) <= WIDTH or " " not in line.strip() for line in lines), lines
    return [line.replace(f"{root}/", "") for line in lines]


def test_an_edit_that_does_not_fit_is_a_difference_to_the_closest_code(tmp_path):
    text = TEXT.replace("self.keep(total)", "self.hold(total)").replace("device=device", "device=0")
    assert shown(tmp_path, text, [ADD, END]) == [
        f"{PATH}:7: this edit does not fit; the closest code there:",
        "--- what the patch looks for",
        f"+++ here: {PATH}:7",
        "@@ -1,2 +1,2 @@",
        " total = self.add(item, device=0)",
        "-self.keep(total)",
        "+self.hold(total)",
        f"{PATH}:9: this edit fits:",
        " self.end(first)",
    ]


def test_a_statement_in_between_is_shown_as_one(tmp_path):
    text = TEXT.replace("            self.keep", "            self.log()\n            self.keep")
    assert shown(tmp_path, text, [ADD])[4:] == [
        " total = self.add(item, device=device)",
        "+self.log()",
        " self.keep(total)",
    ]


def test_an_expression_is_compared_with_expressions(tmp_path):
    text = TEXT.replace("self.end(first)", "self.end(first, x)")
    assert shown(tmp_path, text, [END])[3:] == [
        "@@ -1 +1 @@",
        "-self.end(first)",
        "+self.end(first, x)",
    ]


def test_code_that_is_there_twice(tmp_path):
    text = TEXT.replace("    def two", "        self.end(first)\n\n    def two")
    found = shown(tmp_path, text, [END])
    assert found == [f"{PATH}:3: this is there 2 times; expected once:", " self.end(first)"]


def test_formatting_and_comments_are_no_difference(tmp_path):
    text = TEXT.replace("Doc.", "Other.").replace("# as it is", "").replace("(first)", "( first )")
    text = text.replace("x)\n        for", "x, 1)\n        for")
    assert shown(tmp_path, text, [END], TEXT) == [
        f"--- known: {PATH}:3",
        f"+++ here: {PATH}:3",
        "@@ -1,5 +1,5 @@",
        " def one(self, x, device):",
        "-    first = self.begin(x)",
        "+    first = self.begin(x, 1)",
        "     for item in x:",
        "         total = self.add(item, device=device)",
        "         self.keep(total)",
    ]


def test_a_tree_to_compare_with_that_is_not_known_either_is_said(tmp_path):
    found = " ".join(shown(tmp_path, TEXT.replace("x)", "y)"), [END], TEXT.replace("x)", "z)")))
    assert f"the nearest known source has {digest_in(TEXT)(ONE)}" in found
    same = TEXT.replace("x)", "y)")
    found = " ".join(shown(tmp_path, same, [END], same))
    assert found == f"{ONE} is the same in known."


def test_a_tree_to_compare_with_that_has_no_such_method(tmp_path):
    found = shown(tmp_path, TEXT.replace("x)", "y)"), [END], "class Thing: pass\n")
    assert " ".join(found[:2]).startswith(f"known has no {ONE}.")
    assert " self.end(first)" in found


def two(self: object) -> int:
    return 3


def reset(self: object) -> None:
    self.there = None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (Replace(TWO, two), ["-    return 2 + 0", "+    return 3"]),
        (Before(TWO, reset), ["+self.there = None"]),
        (Requires(TWO, "it gives two"), ["it gives two"]),
    ],
)
def test_other_edits_say_what_they_do(tmp_path, edit, expected):
    found = shown(tmp_path, TEXT.replace("return 2", "return 2 + 0"), [edit])
    assert all(any(line.endswith(part) for line in found) for part in expected), found


def test_a_method_that_is_not_there(tmp_path):
    text = TEXT.replace("def two", "def three")
    found = shown(tmp_path, text, [END, Requires(TWO, "it gives two")])
    assert f"{TWO} is not there." in found


def test_long_lines_are_folded(tmp_path):
    long = ", ".join(f"argument_{n}=self.value_{n}" for n in range(20))
    text = TEXT.replace("self.keep(total)", f"self.keep(total, {long})")
    assert any(line.startswith("+    argument") for line in shown(tmp_path, text, [ADD]))


def test_check_shows_it_with_what_to_do_next(tmp_path):
    write_patchable_tree(tmp_path)
    done = command("check", ID, "--diff", "--megatron", str(tmp_path))
    assert done.returncode == 3
    assert "+++ the patch" in done.stdout
    assert "-    return 1" in done.stdout
    assert "accept the source" in done.stdout
    _, *lines = [line for line in done.stdout.splitlines() if " " in line.strip()]
    assert all(len(line) <= WIDTH for line in lines if not line.startswith(("--- ", "+++ "))), lines
    report = json.loads(
        command("check", ID, "--diff", "--json", "--megatron", str(tmp_path)).stdout
    )
    assert "-    return 1" in report["patches"][0]["diff"]
    plain = json.loads(command("check", ID, "--json", "--megatron", str(tmp_path)).stdout)
    assert "diff" not in plain["patches"][0]


def test_against_needs_diff_and_a_tree(tmp_path):
    write_patchable_tree(tmp_path)
    done = command("check", "--against", str(tmp_path), "--megatron", str(tmp_path))
    assert (done.returncode, "add --diff" in done.stderr) == (2, True)
    nowhere = tmp_path / "nowhere"
    done = command("check", "--diff", "--against", str(nowhere), "--megatron", str(tmp_path))
    assert (done.returncode, f"{nowhere} is not a Megatron tree" in done.stderr) == (2, True)


def test_what_does_not_fit_has_other_next_steps(tmp_path):
    context = "class DynamicInferenceContext:\n    def current_input_and_position_ids(self): ...\n"
    write_tree(tmp_path, context)
    (tmp_path / "megatron" / "core" / "__init__.py").touch()
    done = command("check", ID, "--diff", "--megatron", str(tmp_path))
    assert done.returncode == 3, done.stderr
    for part in ("cannot be accepted", "MEGATRON_PATCH_RECORDS", f"MEGATRON_PATCH=-{ID}."):
        assert part in done.stdout
