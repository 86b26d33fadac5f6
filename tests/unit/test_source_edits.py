"""The source patches of a series on a tree: which there are, in which order, and what drifts."""

from __future__ import annotations

import pytest

from megatron_patch.edits import Add
from megatron_patch.errors import DriftedError
from megatron_patch.judge import judge
from megatron_patch.source_edits import source_patches
from megatron_patch.verdicts import Verdict

from .sample import digest_in
from .source_trees import MODULE, PATH, made, write
from .thing import HOOK_TEXT, TEXT, one, patch_of, prefix, substitute, whole


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
    assert [(s.patch.id, s.verdict) for s in skipped] == [
        ("gone", Verdict.NOT_APPLICABLE), ("fixed", Verdict.UPSTREAMED),
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
    with pytest.raises(DriftedError, match=r"minus: .*(does not parse|is not text)"):
        source_patches(tree, SERIES, ["minus"], allow_drift=allow_drift)


def test_patches_that_do_not_fit_on_top_of_each_other_are_told(tmp_path):
    clash = patch_of(substitute("Thing.one", "x + y", "x * y"), id="clash")
    with pytest.raises(DriftedError) as caught:
        made(write(tmp_path, TEXT), [*SERIES, clash])
    assert str(caught.value).startswith(f"clash: {MODULE}:Thing.one: expected `x + y` exactly once")


# Each edit could be made a second time: what it looks for is still there afterwards.
REPEATABLE = {
    "a hook": (prefix("Thing.one"),),
    "an insertion": (substitute("Thing.one", "total += item", "total += item\ntotal += 0"),),
    "a helper": (
        substitute("Thing.fetch", "x + 1", "x + 2"),
        Add(f"{MODULE}:Thing.helper", "def helper(self):\n    return 1\n"),
    ),
    "a constant": (prefix("Thing.one"), Add(f"{MODULE}:LIMIT", "LIMIT = 3")),
}


@pytest.mark.parametrize("edits", REPEATABLE.values(), ids=REPEATABLE)
@pytest.mark.parametrize("unknown", ["as it was", "changed since"])
def test_source_that_is_not_known_is_edited_once(tmp_path, edits, unknown):
    drifted = DRIFTED.replace("return result", "return 0 + result")
    patch = patch_of(*edits, id="twice")
    tree = write(tmp_path, drifted)
    patches, _ = source_patches(tree, [patch], ["twice"], allow_drift=True)
    text = patches[-1].files[-1].after.decode()
    assert text != drifted
    write(tmp_path, text if unknown == "as it was" else text + "\n\nMORE = 1\n")
    with pytest.raises(DriftedError, match=r"has an edit of this patch already|name is taken"):
        source_patches(tree, [patch], ["twice"], allow_drift=True)
    # Nor if a person accepts this source: neither when it is edited as source, nor at run time.
    digests = {digest_in(text)(edit.target) for edit in edits if not isinstance(edit, Add)}
    judgement = judge(patch, tree.read, digests, [patch])
    assert judgement.verdict is Verdict.DRIFTED
    assert "accepted source, but " in judgement.reason
