"""Judgements on unknown source, and source that is accepted by its digest."""

from __future__ import annotations

import ast
import contextlib
import gc
import textwrap

import pytest

from megatron_patch.edits import Add, Before, Replace, Requires, Substitute
from megatron_patch.errors import SettingsError
from megatron_patch.judge import judge, trees_kept
from megatron_patch.model import HAS_IT, NEEDS_NONE, Patch, Source, Variant
from megatron_patch.rewrite import edited
from megatron_patch.verdicts import Verdict, find_definition

from .sample import digest_in, make_patch

TEXT = """
class Thing:
    def one(self):
        total = 1
        return total

    def two(self):
        return 2
"""
ONE, TWO = "m:Thing.one", "m:Thing.two"


def digest(text: str, target: str) -> str:
    return digest_in(text)(target)


def hook(self) -> None:  # type: ignore[no-untyped-def]
    self.log = 1


def other_hook(self) -> None:  # type: ignore[no-untyped-def]
    self.others = 1


def new_two(self):  # type: ignore[no-untyped-def]
    return 22


PATCH = make_patch(
    Substitute(ONE, "total = 1", "total = 10"),
    Replace(TWO, new_two),
    Before(TWO, hook),
    known=digest_in(TEXT),
)


def verdict(text: str, *accepted: str, patch: Patch = PATCH):  # type: ignore[no-untyped-def]
    return judge(patch, {"m": text}.get, frozenset(accepted))


def changed(old: str, new: str) -> str:
    assert TEXT.count(old) == 1
    return TEXT.replace(old, new)


def test_known_source_has_no_misses():
    found = verdict(TEXT)
    assert found.variant is PATCH.variants[0]
    assert found.misses == ()


def test_unknown_source_names_each_target_once_with_both_digests():
    text = changed("return 2", "return 3")
    found = verdict(text)
    assert (found.verdict, found.variant) == (Verdict.DRIFTED, None)
    assert [str(miss) for miss in found.misses] == [
        f"{TWO}: expected {digest(TEXT, TWO)}, found {digest(text, TWO)}"
    ]


@pytest.mark.parametrize(
    ("old", "new", "anchor"),
    [
        ("total = 1", "total = 2", "`total = 1` is not there; expected once"),
        ("total = 1", "total = 1\n        total = 1", "`total = 1` is there 2 times"),
        ("return total", "return -total", ""),
    ],
)
def test_a_substitute_says_what_is_wrong_with_its_anchor(old, new, anchor):
    (miss,) = verdict(changed(old, new)).misses
    assert [found[: len(anchor)] for found in miss.anchors] == ([anchor] if anchor else [])


def test_accepted_source_is_patched_though_unknown():
    text = changed("return total", "return -total")
    found = verdict(text, digest(text, ONE))
    assert found.variant is PATCH.variants[0]
    assert found.reason.startswith(f"accepted source: {ONE}: expected ")


def test_all_drifted_targets_have_to_be_accepted():
    text = changed("return total", "return -total").replace("return 2", "return 3")
    one, two = digest(text, ONE), digest(text, TWO)
    assert verdict(text, one).variant is None
    assert verdict(text, two).variant is None
    assert verdict(text, one, two).variant is not None


@pytest.mark.parametrize(
    ("old", "new", "target", "why"),
    [
        ("total = 1", "total = 2", ONE, "expected `total = 1` exactly once; not found"),
        ("def two(self)", "def two(self, x=1)", TWO, "the signature is (self, x=1)"),
    ],
)
def test_accepted_source_that_the_edits_do_not_fit_stays_drifted(old, new, target, why):
    text = changed(old, new)
    found = verdict(text, digest(text, target))
    assert (found.verdict, found.variant) == (Verdict.DRIFTED, None)
    assert found.reason.startswith("accepted source, but ")
    assert why in found.reason


def test_a_target_that_is_gone_cannot_be_accepted():
    text = changed("def one", "def uno")
    assert verdict(text, digest(TEXT, TWO)).verdict is Verdict.NOT_APPLICABLE
    patch = PATCH._replace(target=TWO)
    found = verdict(text, digest(TEXT, TWO), patch=patch)
    assert found.verdict is Verdict.DRIFTED
    assert f"{ONE}: expected {digest(TEXT, ONE)}, not found" in found.reason


@pytest.mark.parametrize("text", [TEXT, changed("return 2", "return 3"), "class Thing: pass"])
def test_a_digest_that_is_nowhere_is_an_error(text):
    wrong = "0123456789abcdef"
    with pytest.raises(SettingsError) as caught:
        verdict(text, wrong)
    assert f"MEGATRON_PATCH_ACCEPT: sample@{wrong} is not the source of any target" in str(
        caught.value
    )


def test_accepting_what_is_known_or_upstreamed_changes_nothing():
    assert verdict(TEXT, digest(TEXT, ONE)).misses == ()
    source = Source(HAS_IT, ((TWO, digest(TEXT, TWO)),), "9")
    known = PATCH._replace(sources=(*PATCH.sources, source))
    assert verdict(TEXT, digest(TEXT, TWO), patch=known).verdict is Verdict.UPSTREAMED


def test_source_that_never_needed_the_change_is_not_applicable():
    source = Source(NEEDS_NONE, ((TWO, digest(TEXT, TWO)),), "0.1")
    found = verdict(TEXT, patch=PATCH._replace(sources=(*PATCH.sources, source)))
    assert (found.verdict, found.variant) == (Verdict.NOT_APPLICABLE, None)
    assert found.reason == f"{TWO} is that of 0.1, which needs no patch"


SAME = make_patch(
    Substitute(ONE, "total = 1", "total = 10"),
    Substitute(TWO, "return 2", "# why\nreturn 2"),
    known=digest_in(TEXT),
)


def test_a_target_that_is_only_a_condition_must_be_known_as_well():
    assert verdict(TEXT, patch=SAME).variant is SAME.variants[0]
    found = verdict(changed("return 2", "return 3"), patch=SAME)
    assert (found.verdict, [miss.target for miss in found.misses]) == (Verdict.DRIFTED, [TWO])


@pytest.mark.parametrize("comment", ["", "# why\n        "], ids=["other comment", "our comment"])
def test_a_patch_is_recognised_in_source_by_what_it_changes(comment):
    text = changed("total = 1", "total = 10").replace("return 2", f"{comment}return 2")
    assert judge(SAME, {"m": text}.get, series=(SAME,)).verdict is Verdict.UPSTREAMED
    drifted = text.replace("return 2", "return 3")
    assert judge(SAME, {"m": drifted}.get, series=(SAME,)).verdict is Verdict.DRIFTED


def _three(self) -> int:  # type: ignore[no-untyped-def]
    return 3


# Nothing of the source is changed: a helper is added, which is right for these two methods.
HELPER_ALONE = make_patch(
    Requires(ONE, "the helper calls it"),
    Requires(TWO, "the helper calls it"),
    Add("m:Thing._three", _three),
    known=digest_in(TEXT),
)


@pytest.mark.parametrize("others", [False, True], ids=["as it was", "with another patch"])
def test_a_patch_that_only_adds_is_recognised_by_what_it_adds(others):
    text = changed("total = 1", "total = 10") if others else TEXT
    series = (SAME, HELPER_ALONE)

    def state(source: str) -> tuple[Verdict, bool]:
        found = judge(HELPER_ALONE, {"m": source}.get, series=series)
        return found.verdict, found.variant is not None

    assert state(text) == (Verdict.APPLICABLE, True)
    made = f"{text}\n    def _three(self) -> int:\n        return 3\n"
    assert state(made) == (Verdict.UPSTREAMED, False)
    assert state(made.replace("return 2", "return 20")) == (Verdict.DRIFTED, False)


@pytest.mark.parametrize("collecting", [True, False])
def test_the_garbage_collector_rests_while_patches_are_judged_and_is_as_it_was(collecting):
    def judged() -> None:
        with trees_kept():
            assert not gc.isenabled()
            raise SettingsError("what a judge may raise")

    if not collecting:
        gc.disable()
    try:
        with pytest.raises(SettingsError):
            judged()
        assert gc.isenabled() is collecting
    finally:
        gc.enable()


def test_source_that_no_variant_is_for_or_that_lacks_a_target_makes_a_patch_drifted():
    """Either is a fault of the ledger, by which unknown source would be edited."""
    gone = PATCH.sources[0]._replace(digests=((TWO, digest(TEXT, TWO)),))
    found = verdict(TEXT, patch=PATCH._replace(sources=(gone,)))
    assert (found.verdict, found.variant) == (Verdict.DRIFTED, None)
    assert f"the sample is known without a digest of {ONE}" in found.reason


LOG = Before(TWO, hook, "it sets an attribute that is ours")
# The second target is not among those that are known by their digests.
HOOKED = make_patch(Substitute(ONE, "total = 1", "total = 10"), LOG, known=digest_in(TEXT))


def on_hooked(text: str) -> tuple[Verdict, bool]:
    found = judge(HOOKED, {"m": text}.get, series=(HOOKED,))
    return found.verdict, found.variant is not None


def with_two(text: str) -> str:
    return changed("    def two(self):\n        return 2\n", textwrap.indent(text, "    "))


METHODS = {
    "another body": "def two(self):\n    while self:\n        return 3\n",
    "more parameters": "def two(self, x=1, *args: int, **more) -> int:\n    return 2\n",
    "a position alone": "def two(self, /):\n    return 2\n",
    "an annotation": "def two(self: object):\n    return 2\n",
    "on one line": "def two(self): return 2\n",
    "on the last line of the signature": "def two(self,\nx=1): return 2\n",
    "a docstring": 'def two(self):\n    """Doc.\n\n    # more"""\n    return 2\n',
    "a comment": "def two(self):\n    # why\n    return 2\n",
    "a decorated function first": (
        "def two(self):\n    # why\n    @self.wrap\n    @self\n    def f(): pass\n    return f\n"
    ),
    "a decorated class first": "def two(self):\n    @self.wrap\n    class A: pass\n    return A\n",
    "a generator inside": "def two(self):\n    def f():\n        yield 1\n    return list(f())\n",
    "a yield in a lambda": "def two(self):\n    return lambda: (yield)\n",
}


@pytest.mark.parametrize("name", METHODS)
def test_an_independent_hook_goes_into_any_plain_method(name):
    text = with_two(METHODS[name])
    assert on_hooked(text) == (Verdict.APPLICABLE, True)
    before = find_definition(TWO, lambda _: text)
    assert before is not None
    node = edited(before, LOG).node
    skip = ast.get_docstring(node) is not None
    assert ast.unparse(node.body[skip]) == "self.log = 1"
    del node.body[skip]
    assert ast.dump(node) == ast.dump(before.node)


OTHERS = {
    "gone": "x = 1\n",
    "another first parameter": "def two(this):\n    return 2\n",
    "no parameter": "def two():\n    return 2\n",
    "a keyword alone": "def two(*, self):\n    return 2\n",
    "any arguments": "def two(*self):\n    return 2\n",
    "a static method": "@staticmethod\ndef two(self):\n    return 2\n",
    "a class method": "@classmethod\ndef two(self):\n    return 2\n",
    "a property": "@property\ndef two(self):\n    return 2\n",
    "a coroutine": "async def two(self):\n    return 2\n",
    "a generator": "def two(self):\n    if self:\n        x = yield 2\n",
    "a delegating generator": "def two(self):\n    yield from self\n",
    "a generator by a default": "def two(self):\n    def f(x=(yield)):\n        pass\n",
    "a generator by a decorator": "def two(self):\n    @(yield)\n    def f(): pass\n",
    "a generator by a default of a lambda": "def two(self):\n    return lambda x=(yield): x\n",
    "nothing but a docstring": 'def two(self):\n    """Doc."""\n',
    "a statement where the docstring ends": 'def two(self):\n    """Doc."""; return 2\n',
    "the hook already": "def two(self):\n    self.log = 1\n    return 2\n",
    "the hook already, and a docstring": (
        'def two(self):\n    """Doc."""\n    self.log = 1\n    return 2\n'
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_method_that_an_independent_hook_is_not_for_is_drifted(name):
    text = with_two(OTHERS[name])
    for series in ((), (HOOKED,)):
        found = judge(HOOKED, {"m": text}.get, series=series)
        assert (found.verdict, found.variant) == (Verdict.DRIFTED, None)
        assert f"{TWO}: expected a plain method with the hook's parameter" in found.reason
    for miss in found.misses:
        with pytest.raises(SettingsError) if miss.found is None else contextlib.nullcontext():
            accepted = judge(HOOKED, {"m": text}.get, {miss.found or digest(TEXT, TWO)})
            assert accepted.verdict is Verdict.DRIFTED


def test_a_method_that_is_there_twice_takes_no_independent_hook():
    text = with_two("def two(self):\n    return 2\n\ndef two(self):\n    return 3\n")
    assert on_hooked(text) == (Verdict.DRIFTED, False)


def test_an_independent_hook_is_recognised_with_all_else_that_is_made():
    made = changed("total = 1", "total = 10").replace(
        "return 2", "self.log = 1\n        return other.than + it.was"
    )
    assert on_hooked(made) == (Verdict.UPSTREAMED, False)
    assert on_hooked(made.replace("self.log = 1", "self.log = 2")) == (Verdict.DRIFTED, False)
    assert on_hooked(made.replace("total = 10", "total = 1")) == (Verdict.DRIFTED, False)
    assert on_hooked(made.replace("return total", "return -total")) == (Verdict.DRIFTED, False)


def test_an_independent_hook_goes_below_one_of_another_patch():
    other = make_patch(Before(TWO, other_hook), known=digest_in(TEXT), id="other")
    series = (other, HOOKED)
    text = changed("return 2", "self.others = 1\n        return 2")
    found = judge(HOOKED, {"m": text}.get, series=series)
    assert (found.verdict, found.variant) == (Verdict.APPLICABLE, HOOKED.variants[0])
    both = text.replace("self.others", "self.log = 1\n        self.others")
    assert judge(HOOKED, {"m": both}.get, series=series).verdict is Verdict.DRIFTED
    both = both.replace("total = 1", "total = 10")
    assert judge(HOOKED, {"m": both}.get, series=series).verdict is Verdict.UPSTREAMED


@pytest.mark.parametrize(("version", "closest"), [((0, 1), "first"), ((0, 2), "second")])
def test_a_replacement_for_the_trees_own_release_is_the_closest(version, closest):
    """A replacement fits any source, so only the release can tell them apart."""
    of_both = Replace(TWO, new_two)
    patch = PATCH._replace(
        variants=(Variant("first", (of_both,)), Variant("second", (of_both,))),
        sources=(
            Source("first", ((TWO, "0" * 16),), "0.1.0 and 0.1.1"),
            Source("second", ((TWO, "1" * 16),), "0.2.0"),
        ),
    )
    major, minor = version
    info = f"MAJOR = {major}\nMINOR = {minor}\nPATCH = 7\nPRE_RELEASE = 'rc1'\n"
    texts = {"m": TEXT, "megatron.core.package_info": info}
    found = judge(patch, texts.get)
    assert found.verdict is Verdict.DRIFTED
    assert found.closest is not None
    assert found.closest.name == closest
