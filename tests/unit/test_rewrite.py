"""The four edits on small modules: what survives, and what is refused."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from megatron_patch.edits import Add, Before, Edit, Replace, Requires, Substitute
from megatron_patch.states import State

from .sample import Workshop, only

pytestmark = pytest.mark.filterwarnings("ignore::megatron_patch.MegatronPatchWarning")

MODULE = '''
import functools

FACTOR = 10


def doubled(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return 2 * function(*args, **kwargs)

    return wrapper


def hidden(function):
    def wrapper(*args):
        return function(*args)

    return wrapper


class Base:
    def inherited(self, x):
        return x

    def greet(self):
        return "base"


class Sample(Base):
    LIMIT = 3
    log = ()

    def plain(self, x: int, *, y: int = FACTOR) -> int:
        """Doc."""
        # about total
        total = x + y  # trailing
        for item in range(2):
            total += item
        return total * FACTOR

    @staticmethod
    def static(x=LIMIT):
        return x + 1

    @classmethod
    def cls(cls, x):
        return cls.LIMIT + x

    @property
    def prop(self):
        return 7 + FACTOR

    @functools.cached_property
    def cached(self):
        return 7 + FACTOR

    async def fetch(self, x):
        result = x + 1
        return result

    def greet(self):
        text = super().greet()
        return text + "!"

    def private(self):
        return self.__secret() + 1

    def __secret(self):
        return 40

    @doubled
    def decorated(self, x):
        return x + 1

    @staticmethod
    @hidden
    def closed(x):
        return x + 1

    def one_line(self): return 1

    def generator(self, n):
        yield n
        yield n + 1


def function(x):
    return x - 1
'''


@pytest.fixture
def sample(workshop: Workshop):  # type: ignore[no-untyped-def]
    workshop.write("sample_module", MODULE)
    import sample_module

    return sample_module


def apply(workshop: Workshop, *edits: Edit) -> None:
    entry = only(workshop.engine(workshop.patch(*edits)))
    assert entry.state is State.APPLIED, entry.reason


def refuse(workshop: Workshop, *edits: Edit) -> str:
    entry = only(workshop.engine(workshop.patch(*edits)))
    assert entry.state is State.FAILED
    return entry.reason


def substitute(name: str, find: str, put: str) -> Substitute:
    return Substitute(f"sample_module:{name}", find, put)


def record_call(self) -> None:  # type: ignore[no-untyped-def]
    self.log = (*self.log, "before")


FACTOR = -1  # the target module has a FACTOR of its own, and that one must be used


def replacement(self, x: int, *, y: int = FACTOR) -> int:  # type: ignore[no-untyped-def]
    """Ours."""
    return FACTOR - x


def test_replace_runs_in_the_target_module_and_keeps_what_describes_the_function(workshop, sample):
    original = vars(sample.Sample)["plain"]
    apply(workshop, Replace("sample_module:Sample.plain", replacement))
    new = vars(sample.Sample)["plain"]
    assert sample.Sample().plain(4) == 6
    assert type(new) is type(original)
    assert new.__qualname__ == "Sample.plain"
    assert new.__module__ == "sample_module"
    assert inspect.signature(new) == inspect.signature(original)
    assert new.__doc__ == "Doc."
    assert new.__megatron_patch__ == ("sample",)
    assert not hasattr(new, "__wrapped__")


def test_replace_refuses_another_signature(workshop, sample):
    edit = Replace("sample_module:Sample.greet", replacement)
    assert "the signature is (self)" in refuse(workshop, edit)


@pytest.mark.parametrize("name", ["plain", "one_line", "generator", "fetch", "greet", "decorated"])
def test_before_runs_first(workshop, sample, name):
    expected = {"plain": 120 - 9, "one_line": 1, "generator": [5, 6], "fetch": 6, "decorated": 12}
    apply(workshop, Before(f"sample_module:Sample.{name}", record_call))
    instance = sample.Sample()
    method = getattr(instance, name)
    result = method() if name in ("one_line", "greet") else method(5)
    if name == "generator":
        result = list(result)
    if name == "fetch":
        assert inspect.iscoroutinefunction(vars(sample.Sample)["fetch"])
        result = asyncio.run(result)
    assert instance.log == ("before",)
    assert result == {**expected, "plain": 160, "greet": "base!"}[name]


def test_before_refuses_a_hook_with_another_parameter(workshop, sample):
    edit = Before("sample_module:function", record_call)
    assert "the hook takes ['self']" in refuse(workshop, edit)


@pytest.mark.parametrize(
    ("name", "find", "put", "call", "expected"),
    [
        ("plain", "total = x + y", "total = x - y", lambda s: s.plain(4), -50),
        ("plain", "x + y", "x if x else y", lambda s: s.plain(4), 50),
        ("plain", "total += item", "pass", lambda s: s.plain(4), 140),
        ("plain", "for item in range(2):\n    total += item\nreturn total * FACTOR",
         "total += 1\nreturn -total", lambda s: s.plain(4), -15),
        ("plain", "for item in range(2):\n    total += item", "", lambda s: s.plain(4), 140),
        ("static", "x + 1", "x + 2", lambda s: s.static(), 5),
        ("cls", "cls.LIMIT", "100", lambda s: s.cls(1), 101),
        ("prop", "7", "8", lambda s: s.prop, 18),
        ("cached", "7", "8", lambda s: s.cached, 18),
        ("fetch", "result = x + 1", "result = x + 2", lambda s: asyncio.run(s.fetch(1)), 3),
        ("greet", "'!'", "'?'", lambda s: s.greet(), "base?"),
        ("private", "1", "2", lambda s: s.private(), 42),
        ("decorated", "1", "2", lambda s: s.decorated(1), 6),
        ("closed", "1", "2", lambda s: s.closed(1), 3),
        ("one_line", "return 1", "return 5", lambda s: s.one_line(), 5),
    ],
)  # fmt: skip
def test_substitute(workshop, sample, name, find, put, call, expected):
    kind = type(vars(sample.Sample)[name])
    edit = substitute(f"Sample.{name}", find, put)
    apply(workshop, edit)
    assert call(sample.Sample()) == expected
    assert type(vars(sample.Sample)[name]) is kind


def test_substitute_on_a_module_level_function(workshop, sample):
    apply(workshop, substitute("function", "x - 1", "x + FACTOR"))
    assert sample.function(1) == 11


def test_substitute_puts_parentheses_where_they_are_needed(workshop, sample):
    apply(workshop, substitute("Sample.private", "self.__secret()", "1 if self else 2"))
    assert sample.Sample().private() == 2


def test_substitute_refuses_no_match_and_two_matches(workshop, sample):
    reason = refuse(workshop, substitute("Sample.plain", "x + z", "x"))
    assert "expected `x + z` exactly once; not found" in reason
    reason = refuse(workshop, substitute("Sample.plain", "FACTOR * 1", "x"))
    assert "sample_module:Sample.plain" in reason


def test_two_edits_of_one_target_compose_in_order(workshop, sample):
    apply(
        workshop,
        substitute("Sample.plain", "x + y", "x - y"),
        substitute("Sample.plain", "x - y", "x * y"),
    )
    assert sample.Sample().plain(4) == 410


def test_two_patches_of_one_target_stack_and_come_off_in_order(workshop, sample):
    original = vars(sample.Sample)["plain"]
    first = workshop.patch(substitute("Sample.plain", "x + y", "x - y"), id="first")
    second = workshop.patch(substitute("Sample.plain", "total * FACTOR", "total"), id="second")
    engine = workshop.engine(first, second)
    assert [entry.state for entry in engine.status()] == [State.APPLIED, State.APPLIED]
    assert sample.Sample().plain(4) == -5
    assert vars(sample.Sample)["plain"].__megatron_patch__ == ("first", "second")
    engine.uninstall()
    assert vars(sample.Sample)["plain"] is original


def helper(self, x: "Missing") -> int:  # type: ignore # noqa: F821, UP037
    return FACTOR + x


def test_add_defines_a_helper_in_the_namespace_of_the_target(workshop, sample):
    edit = substitute("Sample.plain", "return total * FACTOR", "return self.helper(x)")
    engine = workshop.engine(
        workshop.patch(
            Add("sample_module:Sample.helper", helper),
            Add("sample_module:EXTRA", "EXTRA = 5"),
            edit,
        )
    )
    assert only(engine).state is State.APPLIED, only(engine).reason
    assert sample.Sample().plain(4) == 14
    assert sample.Sample.helper.__qualname__ == "Sample.helper"
    assert sample.EXTRA == 5
    engine.uninstall()
    assert "helper" not in vars(sample.Sample)
    assert not hasattr(sample, "EXTRA")


def test_an_added_class_method_sees_the_names_of_the_class(workshop, sample):
    made = "@classmethod\ndef helper(cls, of=plain):\n    return cls, of\n"
    engine = workshop.engine(
        workshop.patch(
            Requires("sample_module:Sample.plain", "it is a default of the helper"),
            Add("sample_module:Sample.helper", made),
        )
    )
    assert only(engine).state is State.APPLIED, only(engine).reason
    assert sample.Sample.helper() == (sample.Sample, vars(sample.Sample)["plain"])
    assert sample.Sample.helper.__qualname__ == "Sample.helper"
    engine.uninstall()
    assert "helper" not in vars(sample.Sample)


def test_add_refuses_a_name_that_is_taken_and_changes_nothing(workshop, sample):
    original = vars(sample.Sample)["plain"]
    reason = refuse(
        workshop,
        substitute("Sample.plain", "x + y", "x - y"),
        Add("sample_module:FACTOR", "FACTOR = 5"),
    )
    assert "the name is taken" in reason
    assert vars(sample.Sample)["plain"] is original
