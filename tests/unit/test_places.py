"""What runs is what was judged: names, wrappers, conditions, and code that has the change."""

from __future__ import annotations

import functools
import importlib
import pickle
import py_compile
import sys
import types

import pytest
import wrapt

from megatron_patch.edits import Requires, Substitute
from megatron_patch.settings import Settings
from megatron_patch.states import State

from .sample import only

pytestmark = pytest.mark.filterwarnings("ignore::megatron_patch.MegatronPatchWarning")

MODULE = """
import functools


def remembered(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def double(x):
    return x * 2


class Thing:
    def one(self):
        return 1

    def two(self):
        return 2

    @staticmethod
    def three():
        return 3

    @property
    def four(self):
        return 4

    @remembered
    def five(self):
        return 5
"""

VALUES = {"one": "1", "three": "3", "four": "4", "five": "5"}


def substitute(qualname: str, find: str, put: str) -> Substitute:
    return Substitute(f"target_module:{qualname}", find, put)


def called(thing: object, name: str) -> object:
    value = getattr(thing, name)
    return value() if callable(value) else value


def again(engine):  # type: ignore[no-untyped-def]
    engine.install(Settings(frozenset({"sample"}), strict=False))
    return only(engine).state


# Names that others have for a target


@pytest.fixture
def doubled(workshop):
    """A function that other modules took by name, in every way that there is."""
    module = workshop.load("target_module", MODULE)
    user = types.ModuleType("user_module")
    user.double = module.double
    user.partial = functools.partial(module.double, 4)
    user.Holder = type("Holder", (), {"double": staticmethod(module.double)})
    workshop.names.add("user_module")
    sys.modules["user_module"] = user
    return workshop.patch(substitute("double", "x * 2", "x * 20"))


def test_names_by_which_others_took_a_function_lead_to_the_patch_and_back(workshop, doubled):
    engine = workshop.engine(doubled)
    user = sys.modules["user_module"]

    def results():
        return user.double(4), user.partial(), user.Holder.double(4)

    assert results() == (80, 80, 80)
    engine.uninstall()
    assert results() == (8, 8, 8)


def test_a_function_is_pickled_by_any_of_its_names(workshop, doubled):
    user = sys.modules["user_module"]
    stored = pickle.dumps(user.double)
    engine = workshop.engine(doubled)
    target = sys.modules["target_module"].double
    assert pickle.loads(pickle.dumps(user.double)) is target
    assert pickle.loads(stored) is target
    engine.uninstall()
    assert pickle.loads(pickle.dumps(user.double)) is target


def test_a_bound_method_from_before_runs_the_patch(workshop):
    bound = workshop.load("target_module", MODULE).Thing().one
    engine = workshop.engine(workshop.patch(substitute("Thing.one", "1", "10")))
    assert bound() == 10
    engine.uninstall()
    assert bound() == 1


# Wrappers of wrapt


def plus_thousand(wrapped, instance, args, kwargs):
    return 1000 + wrapped(*args, **kwargs)


@pytest.mark.parametrize("name", VALUES)
def test_a_wrapper_of_wrapt_from_before_stays_and_is_told(workshop, name):
    module = workshop.load("target_module", MODULE)
    patch = workshop.patch(substitute(f"Thing.{name}", VALUES[name], "7"))
    if name == "four":
        getter = wrapt.FunctionWrapper(vars(module.Thing)["four"].fget, plus_thousand)
        module.Thing.four = property(getter)
    else:
        wrapt.wrap_function_wrapper(module, f"Thing.{name}", plus_thousand)
    theirs, before = vars(module.Thing)[name], called(module.Thing(), name)
    engine = workshop.engine(patch)
    assert only(engine).state is State.SHADOWED
    assert vars(module.Thing)[name] is theirs
    assert called(module.Thing(), name) == before == 1000 + int(VALUES[name])
    engine.uninstall()
    assert vars(module.Thing)[name] is theirs


@pytest.mark.parametrize("name", sorted(VALUES.keys() - {"four"}))  # wrapt wraps no property
def test_a_wrapper_of_wrapt_from_later_stays_and_is_told(workshop, name):
    module = workshop.load("target_module", MODULE)
    patch = workshop.patch(substitute(f"Thing.{name}", VALUES[name], "7"))
    engine = workshop.engine(patch)
    wrapt.wrap_function_wrapper(module, f"Thing.{name}", plus_thousand)
    theirs = vars(module.Thing)[name]
    assert only(engine).state is State.SHADOWED
    assert called(module.Thing(), name) == 1007
    engine.uninstall()
    assert vars(module.Thing)[name] is theirs


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_post_import_hook_of_wrapt_and_ours_leave_each_other_alone(workshop, ours_first):
    workshop.write("target_module", MODULE)
    patch = workshop.patch(substitute("Thing.one", "1", "7"))

    def hook(module):
        wrapt.wrap_function_wrapper(module, "Thing.one", plus_thousand)

    engine = workshop.engine(patch) if ours_first else None
    wrapt.register_post_import_hook(hook, "target_module")
    engine = engine or workshop.engine(patch)
    module = importlib.import_module("target_module")
    assert only(engine).state is State.SHADOWED
    assert isinstance(vars(module.Thing)["one"], wrapt.FunctionWrapper)
    assert module.Thing().one() in (1001, 1007)


# Conditions


@pytest.fixture
def conditional(workshop):
    """A patch of one method that relies on another, which it leaves alone."""
    workshop.load("target_module", MODULE)
    return workshop.patch(
        substitute("Thing.one", "1", "10"),
        Requires("target_module:Thing.two", "it is two"),
    )


REPLACEMENTS = {
    "replaced": lambda original: lambda self: 22,
    "wrapped": lambda original: functools.wraps(original)(lambda self: original(self)),
    "wrapt": lambda original: wrapt.FunctionWrapper(original, plus_thousand),
}


@pytest.mark.parametrize("how", REPLACEMENTS)
def test_a_patch_is_not_applied_where_somebody_replaced_what_it_relies_on(
    workshop, conditional, how
):
    thing = sys.modules["target_module"].Thing
    original = thing.two
    thing.two = REPLACEMENTS[how](original)
    engine = workshop.engine(conditional)
    assert only(engine).state is State.SHADOWED
    assert "target_module:Thing.two" in only(engine).reason
    assert thing().one() == 1
    thing.two = original
    assert again(engine) is State.APPLIED


@pytest.mark.parametrize("how", REPLACEMENTS)
def test_a_patch_is_shadowed_where_somebody_replaces_what_it_relies_on(workshop, conditional, how):
    thing = sys.modules["target_module"].Thing
    engine = workshop.engine(conditional)
    original = thing.two
    thing.two = REPLACEMENTS[how](original)
    assert only(engine).state is State.SHADOWED
    assert "target_module:Thing.two" in only(engine).reason
    thing.two = original
    assert only(engine).state is State.APPLIED
    engine.uninstall()
    assert thing().one() == 1


def test_other_code_in_a_function_that_a_patch_relies_on_is_told(workshop, conditional):
    thing = sys.modules["target_module"].Thing
    engine = workshop.engine(conditional)
    thing.two.__code__ = (lambda self: 22).__code__
    assert only(engine).state is State.SHADOWED


def test_what_a_patch_relies_on_may_be_changed_by_another_of_the_series(workshop, conditional):
    other = workshop.patch(substitute("Thing.two", "2", "20"), id="other")
    for series in ((other, conditional), (conditional, other)):
        engine = workshop.engine(*series)
        assert {entry.state for entry in engine.status()} == {State.APPLIED}
        engine.install(Settings(frozenset({"sample"}), strict=False))
        states = {entry.id: entry.state for entry in engine.status()}
        assert states == {"sample": State.APPLIED, "other": State.DISABLED}
        engine.uninstall()


def test_a_class_that_somebody_replaced_is_left_alone(workshop, conditional):
    module = sys.modules["target_module"]
    original = module.Thing
    module.Thing = type("Thing", (original,), {"__module__": "elsewhere"})
    engine = workshop.engine(conditional)
    assert only(engine).state is State.SHADOWED
    assert "elsewhere.Thing" in only(engine).reason
    assert original().one() == 1
    module.Thing = original
    assert again(engine) is State.APPLIED


def test_a_class_that_somebody_replaces_later_is_told(workshop, conditional):
    module = sys.modules["target_module"]
    engine = workshop.engine(conditional)
    original = module.Thing
    module.Thing = type("Thing", (original,), {"__module__": "elsewhere"})
    assert only(engine).state is State.SHADOWED
    module.Thing = original
    engine.uninstall()
    assert original().one() == 1


def test_a_proxy_in_the_place_of_a_class_is_left_alone(workshop, conditional):
    module = sys.modules["target_module"]
    original = module.Thing
    module.Thing = wrapt.ObjectProxy(original)
    engine = workshop.engine(conditional)
    assert only(engine).state is State.SHADOWED
    assert original().one() == 1


# Source that has the change


@pytest.fixture
def fixed(workshop):
    """A patch whose upstream change is in the file, and the file as it was before that."""
    fixed = MODULE.replace("return 1", "return 10")
    workshop.write("target_module", fixed)
    has_it = {"target_module:Thing.one": workshop.digest("target_module:Thing.one")}
    workshop.write("target_module", MODULE)
    return workshop.patch(substitute("Thing.one", "1", "10"), has_it=has_it), fixed


def test_source_that_was_changed_after_its_import_is_not_upstreamed(workshop, fixed):
    patch, text = fixed
    module = importlib.import_module("target_module")
    workshop.write("target_module", text)
    engine = workshop.engine(patch)
    assert module.Thing().one() == 1
    assert only(engine).state is State.SHADOWED
    assert "not compiled from the module's source" in only(engine).reason


def test_compiled_code_that_is_older_than_its_source_is_not_upstreamed(workshop, fixed):
    patch, text = fixed
    path = workshop.directory / "target_module.py"
    py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    workshop.write("target_module", text)
    engine = workshop.engine(patch)
    assert importlib.import_module("target_module").Thing().one() == 1
    assert only(engine).state is State.SHADOWED


def test_source_with_the_patch_made_in_it_is_proved_too(workshop, fixed):
    patch, text = fixed
    patch = patch._replace(sources=patch.sources[:1])
    importlib.import_module("target_module")
    workshop.write("target_module", text)
    assert only(workshop.engine(patch)).state is State.SHADOWED
    importlib.reload(sys.modules["target_module"])
    assert only(workshop.engines[-1]).state is State.UPSTREAMED


@pytest.mark.parametrize("how", REPLACEMENTS)
def test_upstream_code_is_upstreamed_below_a_wrapper_and_not_where_it_is_replaced(
    workshop, fixed, how
):
    patch, text = fixed
    thing = workshop.load("target_module", text).Thing
    original = thing.one
    engine = workshop.engine(patch)
    assert only(engine).state is State.UPSTREAMED
    thing.one = REPLACEMENTS[how](original)
    state = State.SHADOWED if how == "replaced" else State.UPSTREAMED
    assert only(engine).state is state
    assert again(engine) is state
    thing.one = original
    assert again(engine) is State.UPSTREAMED
    thing.one = REPLACEMENTS[how](original)
    assert only(engine).state is state
    thing.one = original
    assert only(engine).state is State.UPSTREAMED


# Functions in a `try` of the module

TRIED = """
try:
    import {needed}

    def of(value):
        return value

    def unchanged(function):
        return function

    @unchanged
    async def one():
        return 1

except ImportError:
    pass
"""


@pytest.fixture
def tried(workshop):
    """Engines of a patch of a function in a ``try``, which needs a module."""

    def build(needed):
        workshop.write("target_module", TRIED.format(needed=needed))
        return workshop.engine(workshop.patch(substitute("one", "1", "10")))

    return build


def awaited(coroutine):
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    return stopped.value.value


def test_a_function_in_a_try_is_edited_in_place(tried):
    engine = tried("math")
    module = importlib.import_module("target_module")
    held = module.one
    assert only(engine).state is State.APPLIED
    assert awaited(held()) == 10
    engine.uninstall()
    assert awaited(held()) == 1


def test_one_whose_imports_fail_is_not_applicable(tried):
    engine = tried("no_such_module")
    module = importlib.import_module("target_module")
    assert not hasattr(module, "one")
    entry = only(engine)
    assert entry.state is State.NOT_APPLICABLE
    assert entry.reason == ("target_module:one is not defined: what it needs could not be imported")
