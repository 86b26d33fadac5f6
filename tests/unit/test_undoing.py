"""Source that has edits of the series in it already: what is recognised, and what is left to do."""

from __future__ import annotations

import ast
import importlib
import itertools

import pytest

from megatron_patch.definitions import locate
from megatron_patch.edits import Add, Before, Edit, Replace, Substitute
from megatron_patch.errors import DriftedError, MegatronPatchWarning
from megatron_patch.fingerprint import canonical
from megatron_patch.judge import judge
from megatron_patch.model import Patch, Variant
from megatron_patch.rewrite import edited
from megatron_patch.source_edits import source_patches
from megatron_patch.source_tree import SourceTree
from megatron_patch.states import State
from megatron_patch.undoing import Gone, undone
from megatron_patch.verdicts import Verdict

from .sample import Workshop, digest_in, make_patch

MODULE = "undone_module"
TEXT = '''
class Thing:
    log = ()

    def one(self, x):
        """Doc."""
        total = x + 1
        for item in range(2):
            total += item
        return total

    def two(self):
        return 2

    def three(self):
        """Doc."""
        return 3
'''


def hook(self) -> None:  # type: ignore[no-untyped-def]
    self.log = ("hook", *self.log)


def other_hook(self) -> None:  # type: ignore[no-untyped-def]
    """Not a part of it."""
    self.log = ("other", *self.log)
    self.log = tuple(self.log)


def new_two(self):  # type: ignore[no-untyped-def]
    """Doc of ours."""
    return self._twenty()


def _twenty(self: Any) -> int:  # type: ignore[name-defined]  # noqa: F821
    return 20


def found(name: str, text: str = TEXT):  # type: ignore[no-untyped-def]
    definition = locate(MODULE, text, f"Thing.{name}")
    assert definition is not None
    return definition


def substitute(name: str, find: str, put: str) -> Substitute:
    return Substitute(f"{MODULE}:Thing.{name}", find, put)


def before(name: str, function) -> Before:  # type: ignore[no-untyped-def]
    return Before(f"{MODULE}:Thing.{name}", function)


def patch_of(*edits: Edit, **options) -> Patch:  # type: ignore[no-untyped-def]
    """A patch for source as it is in ``TEXT``."""
    return make_patch(*edits, known=digest_in(TEXT), **options)


TWO = Replace(f"{MODULE}:Thing.two", new_two)
HELPER = Add(f"{MODULE}:Thing._twenty", _twenty)

EDITS = {
    "an expression": [substitute("one", "x + 1", "x + 10")],
    "a statement": [substitute("one", "total += item", "total += item\nself.log = total")],
    "statements": [
        substitute("one", "total = x + 1\nfor item in range(2):\n    total += item", "total = x")
    ],
    "a hook": [before("three", hook)],
    "a hook of two statements": [before("three", other_hook)],
    "two hooks": [before("one", hook), before("one", other_hook)],
    "several": [
        substitute("one", "x + 1", "x"),
        before("one", hook),
        substitute("one", "2", "3"),
    ],
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_are_undone(name):
    edits = EDITS[name]
    definition = found(edits[0].target.rpartition(".")[2])
    after = definition
    for edit in edits:
        after = edited(after, edit)
    node = after.node
    whole = ast.dump(node)
    below = undone(node, edits)
    assert isinstance(below, ast.FunctionDef)
    assert canonical(below) == canonical(definition.node)
    assert ast.dump(node) == whole
    assert undone(definition.node, edits) is None


def test_a_replaced_target_is_gone_as_a_whole():
    edits = [TWO, before("two", hook)]
    replaced = edited(found("two"), TWO)
    assert undone(replaced.node, [TWO]) is Gone.WHOLE
    assert undone(edited(replaced, edits[1]).node, edits) is Gone.WHOLE
    assert undone(replaced.node, edits) is None
    assert undone(found("two").node, [TWO]) is None


SERIES = (
    patch_of(substitute("one", "x + 1", "x + 10"), before("one", hook), id="ten"),
    patch_of(TWO, HELPER, id="twenty"),
    patch_of(
        before("one", other_hook),
        before("three", other_hook),
        substitute("one", "total += item", "total -= item"),
        id="other",
    ),
)
IDS = [patch.id for patch in SERIES]
SUBSETS = [c for n in range(len(IDS) + 1) for c in itertools.combinations(IDS, n)]


@pytest.fixture
def directory(workshop: Workshop):  # type: ignore[no-untyped-def]
    workshop.write(MODULE, TEXT)
    return workshop.directory


def make(directory, *ids: str, series=SERIES) -> None:  # type: ignore[no-untyped-def]
    """Make the edits of these patches in the module's file."""
    patches, _ = source_patches(SourceTree(directory), series, ids)
    for patch in patches:
        for file in patch.files:
            (directory / file.path).write_bytes(file.after)


def text_of(directory) -> str:  # type: ignore[no-untyped-def]
    return str((directory / f"{MODULE}.py").read_text())


def change(directory, old: str, new: str) -> None:  # type: ignore[no-untyped-def]
    text = text_of(directory)
    assert text.count(old) == 1
    (directory / f"{MODULE}.py").write_text(text.replace(old, new))


def verdicts(directory, series=SERIES):  # type: ignore[no-untyped-def]
    """What each patch is judged to be, and whether it is applicable there."""
    found = [judge(patch, SourceTree(directory).read, series=series) for patch in series]
    return {p.id: (v.verdict, v.variant is not None) for p, v in zip(series, found, strict=True)}


THERE, TO_DO = (Verdict.UPSTREAMED, False), (Verdict.APPLICABLE, True)
NEITHER = (Verdict.DRIFTED, False)


@pytest.mark.parametrize("ids", SUBSETS, ids=" ".join)
def test_what_is_in_the_source_is_upstreamed_and_the_rest_applicable(directory, ids):
    make(directory, *ids)
    assert verdicts(directory) == {id: THERE if id in ids else TO_DO for id in IDS}
    make(directory, *IDS)
    assert verdicts(directory) == dict.fromkeys(IDS, THERE)
    done = text_of(directory)
    make(directory, *IDS)
    assert text_of(directory) == done


@pytest.mark.parametrize("ids", SUBSETS, ids=" ".join)
def test_at_run_time_the_rest_is_applied_and_comes_off_again(workshop, directory, ids):
    make(directory, *ids)
    module = importlib.import_module(MODULE)
    original = dict(vars(module.Thing))
    engine = workshop.engine(*SERIES)
    states = {entry.id: entry.state for entry in engine.status()}
    assert states == {id: State.UPSTREAMED if id in ids else State.APPLIED for id in IDS}
    thing = module.Thing()
    # Hooks that come later in the series run earlier, unless they were in the source before.
    assert thing.one(1) == 10
    assert (thing.two(), thing.three()) == (20, 3)
    assert sorted(thing.log) == ["hook", "other", "other"]
    engine.uninstall()
    assert dict(vars(module.Thing)) == original
    assert {entry.state for entry in engine.status()} == {State.DISABLED}


@pytest.mark.parametrize("order", [*itertools.permutations(IDS)], ids=" ".join)
def test_patches_may_be_made_one_by_one_in_any_order(directory, order):
    for count, id in enumerate(order, 1):
        make(directory, id)
        there = verdicts(directory)
        assert there == {id: THERE if id in order[:count] else TO_DO for id in IDS}


def test_without_the_series_edited_source_is_unknown(directory):
    make(directory, "ten")
    judgement = judge(SERIES[0], SourceTree(directory).read)
    assert (judgement.verdict, judgement.variant) == (Verdict.DRIFTED, None)


def test_formatting_and_comments_of_edited_source_do_not_matter(directory):
    make(directory, *IDS)
    change(
        directory, "total = x + 10", "total = (\n            x  # more\n            + 10\n        )"
    )
    assert verdicts(directory) == dict.fromkeys(IDS, THERE)


@pytest.mark.parametrize(
    ("old", "new", "drifted"),
    [
        ("x + 10", "x + 11", {"ten", "other"}),  # our own edit was changed
        ("return total", "return -total", {"ten", "other"}),  # or the code around it
        ("return self._twenty()", "return self._twenty() + 1", {"twenty"}),
    ],
)
def test_edited_source_that_somebody_has_changed_is_drifted(directory, old, new, drifted):
    make(directory, *IDS)
    change(directory, old, new)
    assert verdicts(directory) == {id: NEITHER if id in drifted else THERE for id in IDS}


def test_a_patch_in_one_of_its_targets_only_is_drifted(directory):
    half = SERIES[2]._replace(variants=(Variant("the sample", SERIES[2].variants[0].edits[1:2]),))
    make(directory, "other", series=[half])
    assert verdicts(directory)["other"] == NEITHER
    with pytest.raises(DriftedError, match=f"other: unknown source: {MODULE}:Thing.three: expect"):
        make(directory, "other")


def test_a_patch_without_its_helper_is_drifted(directory):
    make(directory, *IDS)
    change(directory, "    def _twenty(self) -> int:\n        return 20\n\n", "")
    assert verdicts(directory) == {id: NEITHER if id == "twenty" else THERE for id in IDS}


def test_a_changed_helper_is_drifted(directory):
    make(directory, "twenty")
    change(directory, "return 20", "return 21")
    assert verdicts(directory)["twenty"] == NEITHER


def test_a_release_that_has_the_change_is_known_below_the_edits_of_others(directory):
    one = f"{MODULE}:Thing.one"
    has_it = {one: digest_in(TEXT)(one)}
    fixed = patch_of(substitute("one", "x + 2", "x + 1"), id="fixed", has_it=has_it)
    series = (fixed, *SERIES)
    make(directory, *IDS, series=series)
    assert verdicts(directory, series) == {"fixed": THERE, **dict.fromkeys(IDS, THERE)}


def test_a_target_is_not_replaced_over_the_edits_of_others(directory, workshop):
    series = (SERIES[1], patch_of(before("two", hook), id="hook"))
    make(directory, "hook", series=series)
    assert verdicts(directory, series) == {"twenty": NEITHER, "hook": THERE}
    module = importlib.import_module(MODULE)
    with pytest.warns(MegatronPatchWarning, match="twenty is drifted"):
        workshop.engine(*series)
    thing = module.Thing()
    assert (thing.two(), thing.log) == (2, ("hook",))
    with pytest.raises(DriftedError, match="twenty: "):
        make(directory, "twenty", series=series)


@pytest.mark.parametrize("put", ["", "# Taken out.\n"])
def test_what_is_taken_out_has_left_nothing_to_find(put):
    found = locate(MODULE, TEXT, "Thing.one")
    edit = Substitute(f"{MODULE}:Thing.one", "for item in range(2):\n    total += item\n", put)
    assert undone(edited(found, edit).node, [edit]) is None


def test_an_edit_is_not_ours_on_source_that_does_not_get_it():
    """Upstream has made the change there, and somebody has made it once more."""
    line = "        total = x + 1\n"
    more = "        self.log = ()\n"
    released = TEXT.replace(line, line + more)
    one = f"{MODULE}:Thing.one"
    backport = make_patch(
        substitute("one", "total = x + 1", "total = x + 1\nself.log = ()"),
        known=digest_in(TEXT),
        id="backport",
        has_it={one: digest_in(released)(one)},
    )
    other = make_patch(
        substitute("one", "total += item", "total -= item"), known=digest_in(released), id="other"
    )

    def verdicts_on(text: str) -> list[Verdict]:
        series = (backport, other)
        return [judge(patch, {MODULE: text}.get, series=series).verdict for patch in series]

    assert verdicts_on(released) == [Verdict.UPSTREAMED, Verdict.APPLICABLE]
    assert verdicts_on(released.replace(more, more + more)) == [Verdict.DRIFTED] * 2
    both = released.replace("total += item", "total -= item")
    assert verdicts_on(both) == [Verdict.UPSTREAMED] * 2
