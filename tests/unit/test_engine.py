"""Judgements, atomicity, ownership, strictness and the state that is reported."""

from __future__ import annotations

import functools
import gc
import importlib
import py_compile
import subprocess
import sys
import threading

import pytest

from megatron_patch import definitions
from megatron_patch.edits import Add, Requires, Substitute
from megatron_patch.engine import Engine
from megatron_patch.errors import MegatronPatchWarning, SettingsError, StrictModeError
from megatron_patch.model import NEEDS_NONE, Source
from megatron_patch.settings import Settings
from megatron_patch.states import State

from .sample import Workshop, digest_in, make_patch, only

MODULE = """
class Thing:
    def one(self):
        return 1

    def two(self):
        return 2


class Child(Thing):
    pass
"""

ONE = "target_module:Thing.one"
TWO = "target_module:Thing.two"


@pytest.fixture
def both(workshop: Workshop):  # type: ignore[no-untyped-def]
    """A patch of two targets, on a module that is written but not imported."""
    workshop.write("target_module", MODULE)
    return workshop.patch(Substitute(ONE, "1", "10"), Substitute(TWO, "2", "20"))


def thing():  # type: ignore[no-untyped-def]
    return sys.modules["target_module"].Thing()


def test_pending_until_the_import_then_applied(workshop, both):
    engine = workshop.engine(both)
    assert only(engine).state is State.PENDING
    assert "target_module has not been imported yet" in only(engine).reason
    module = importlib.import_module("target_module")
    assert only(engine).state is State.APPLIED
    assert (thing().one(), thing().two()) == (10, 20)
    assert module.__loader__ is module.__spec__.loader
    assert type(module.__loader__).__module__.startswith("_frozen_importlib")


def test_the_garbage_collector_rests_while_patches_are_applied(workshop, both, mocker):
    importlib.import_module("target_module")
    seen = []
    decide = Engine._decide
    mocker.patch.object(
        Engine, "_decide", lambda *args: (seen.append(gc.isenabled()), decide(*args))
    )
    assert only(workshop.engine(both)).state is State.APPLIED
    assert seen == [False]
    assert gc.isenabled()


def test_applied_at_once_to_a_module_that_is_imported_and_to_instances_that_exist(workshop, both):
    importlib.import_module("target_module")
    existing = thing()
    engine = workshop.engine(both)
    assert only(engine).state is State.APPLIED
    assert existing.one() == 10


def test_uninstall_restores_the_original_objects_and_install_applies_again(workshop, both):
    module = importlib.import_module("target_module")
    original = dict(vars(module.Thing))
    engine = workshop.engine(both)
    engine.uninstall()
    engine.uninstall()
    assert only(engine).state is State.DISABLED
    assert {n: vars(module.Thing)[n] for n in ("one", "two")} == {
        n: original[n] for n in ("one", "two")
    }
    assert engine.finder not in sys.meta_path
    engine.install(Settings(frozenset({"sample"}), strict=False))
    assert (only(engine).state, thing().one()) == (State.APPLIED, 10)
    engine.install(Settings(frozenset(), strict=False))
    assert (only(engine).state, thing().one()) == (State.DISABLED, 1)
    assert "not selected" in only(engine).reason


@pytest.fixture
def stacked(workshop):
    """Two patches of one method, and a third of another, in a module that is imported."""
    workshop.write("target_module", MODULE.replace("return 1", "return 1 + 2"))
    importlib.import_module("target_module")

    def patch(name, target, find, put):
        return workshop.patch(Substitute(target, find, put))._replace(id=name)

    return workshop.engine(
        patch("lower", ONE, "1", "10"),
        patch("upper", ONE, "2", "20"),
        patch("other", TWO, "2", "9"),
    )


def select(engine, *ids):
    """Install these alone, and say which of them are there and what the method returns."""
    engine.install(Settings(frozenset(ids), strict=False))
    applied = [entry.id for entry in engine.status() if entry.state is State.APPLIED]
    return applied, thing().one()


@pytest.mark.parametrize("first", [(), ("upper",), ("lower",)])
def test_any_of_several_patches_of_one_method_can_be_left_out(stacked, first):
    """Whichever was applied first, and so is below the other."""
    select(stacked)
    select(stacked, *first)
    assert select(stacked, "lower", "upper", "other") == (["lower", "upper", "other"], 30)
    assert select(stacked, "lower", "other") == (["lower", "other"], 12)
    assert select(stacked, "lower", "upper") == (["lower", "upper"], 30)
    assert select(stacked, "upper") == (["upper"], 21)
    assert select(stacked, "lower", "upper") == (["lower", "upper"], 30)
    assert select(stacked) == ([], 3)
    assert "__megatron_patch__" not in vars(type(thing()).one)


@pytest.mark.parametrize("first", [(), ("upper",)])
def test_uninstall_takes_patches_of_one_method_back_in_any_order(stacked, first):
    select(stacked)
    select(stacked, *first)
    select(stacked, "lower", "upper")
    stacked.uninstall()
    assert {entry.state for entry in stacked.status()} == {State.DISABLED}
    assert thing().one() == 3


def test_reload_takes_back_what_is_on_top_of_a_change_in_another_module(workshop):
    workshop.write("target_module", MODULE.replace("return 1", "return 1 + 2"))
    workshop.write("another_module", "class Box:\n    def get(self):\n        return 5\n")
    importlib.import_module("target_module")
    another = importlib.import_module("another_module")
    get = "another_module:Box.get"
    lower = workshop.patch(Substitute(get, "5", "50"), Substitute(ONE, "1", "10"))
    upper = workshop.patch(Substitute(ONE, "2", "20"))
    engine = workshop.engine(lower._replace(id="lower"), upper._replace(id="upper"))
    assert (another.Box().get(), thing().one()) == (50, 30)
    importlib.reload(another)
    assert {entry.state for entry in engine.status()} == {State.APPLIED}
    assert (another.Box().get(), thing().one()) == (50, 30)
    engine.uninstall()
    assert (another.Box().get(), thing().one()) == (5, 3)


def test_reload_is_patched_again(workshop, both):
    module = importlib.import_module("target_module")
    engine = workshop.engine(both)
    old = module.Thing
    importlib.reload(module)
    assert module.Thing is not old
    assert only(engine).state is State.APPLIED
    assert (thing().one(), thing().two()) == (10, 20)
    engine.uninstall()
    assert (thing().one(), thing().two()) == (1, 2)


def test_reload_of_changed_source_is_drifted(workshop, both):
    module = importlib.import_module("target_module")
    engine = workshop.engine(both)
    workshop.write("target_module", MODULE.replace("return 2", "return 22222"))
    with pytest.warns(MegatronPatchWarning, match="target_module:Thing.two: expected"):
        importlib.reload(module)
    assert only(engine).state is State.DRIFTED
    assert (thing().one(), thing().two()) == (1, 22222)


def test_a_half_imported_module_is_patched_at_the_end_of_its_import(workshop, monkeypatch):
    workshop.write("target_module", "import trigger_module\n" + MODULE)
    workshop.write("trigger_module", "import builtins\nbuiltins.install_sample()\n")
    patch = workshop.patch(Substitute(ONE, "1", "10"))
    engines: list[Engine] = []

    def install_sample():  # type: ignore[no-untyped-def]
        engines.append(workshop.engine(patch))
        assert only(engines[0]).state is State.PENDING

    monkeypatch.setattr("builtins.install_sample", install_sample, raising=False)
    module = importlib.import_module("target_module")
    assert only(engines[0]).state is State.APPLIED
    assert module.Thing().one() == 10
    assert type(module.__spec__) is importlib.machinery.ModuleSpec


def test_a_half_imported_module_that_raises_stays_pending(workshop, monkeypatch):
    workshop.write("target_module", "import trigger_module\n" + MODULE + "raise OSError('no')\n")
    workshop.write("trigger_module", "import builtins\nbuiltins.install_sample()\n")
    patch = workshop.patch(Substitute(ONE, "1", "10"))
    engines: list[Engine] = []
    monkeypatch.setattr(
        "builtins.install_sample", lambda: engines.append(workshop.engine(patch)), raising=False
    )
    with pytest.raises(OSError, match="no"):
        importlib.import_module("target_module")
    assert only(engines[0]).state is State.PENDING


def test_a_module_that_raises_while_importing_stays_pending(workshop):
    workshop.write("target_module", MODULE + "raise OSError('no')\n")
    engine = workshop.engine(workshop.patch(Substitute(ONE, "1", "10")))
    with pytest.raises(OSError, match="no"):
        importlib.import_module("target_module")
    assert only(engine).state is State.PENDING
    workshop.write("target_module", MODULE)
    importlib.import_module("target_module")
    assert only(engine).state is State.APPLIED


def test_the_warning_of_a_patch_of_ours_names_no_upstream_change(workshop, both):
    workshop.write("target_module", MODULE.replace("return 2", "return 3"))
    workshop.engine(both._replace(upstream_pr=None))
    with pytest.warns(MegatronPatchWarning, match="without this change; known releases"):
        importlib.import_module("target_module")


def test_one_changed_token_in_one_target_leaves_all_targets_alone(workshop, both):
    workshop.write("target_module", MODULE.replace("return 2", "return 3"))
    engine = workshop.engine(both)
    with pytest.warns(MegatronPatchWarning) as caught:
        importlib.import_module("target_module")
    message = str(caught[0].message)
    for part in ("sample is drifted", TWO, "expected", "found", "upstream #1", "MEGATRON_PATCH=-"):
        assert part in message
    assert (thing().one(), thing().two()) == (1, 3)
    assert only(engine).state is State.DRIFTED


def test_known_fixed_source_is_upstreamed(workshop, both):
    workshop.load("target_module", MODULE)
    has_it = {TWO: workshop.digest(TWO)}
    engine = workshop.engine(workshop.patch(*both.variants[0].edits, has_it=has_it))
    assert only(engine).state is State.UPSTREAMED
    assert "9.9 and later" in only(engine).reason
    assert thing().one() == 1


def test_a_release_without_the_target_is_not_applicable(workshop, both):
    workshop.load("target_module", "class Thing:\n    pass\n")
    engine = workshop.engine(both)
    assert only(engine).state is State.NOT_APPLICABLE
    assert ONE in only(engine).reason


@pytest.mark.parametrize("target", ["there.missing:f", "there.missing.deeper.still:f"])
def test_a_release_without_the_module_or_its_package_is_not_applicable(workshop, target):
    engine = workshop.engine(make_patch(Substitute(target, "1", "2"), known=lambda _: ""))
    assert only(engine).state is State.PENDING
    (workshop.directory / "there").mkdir()
    workshop.write("there/__init__", "")
    importlib.import_module("there")
    workshop.names.add("there")
    assert only(engine).state is State.NOT_APPLICABLE


@pytest.mark.filterwarnings("ignore::megatron_patch.MegatronPatchWarning")
def test_an_inherited_method_is_not_patched_and_the_place_to_patch_is_named(workshop):
    workshop.load("target_module", MODULE)
    edit = Substitute("target_module:Child.one", "1", "10")
    engine = workshop.engine(make_patch(edit, known=lambda _: workshop.digest(ONE)))
    assert only(engine).state is State.DRIFTED
    assert "patch target_module:Thing.one" in only(engine).reason


def test_a_method_that_never_needed_the_change_may_override_another(workshop):
    workshop.load(
        "target_module", MODULE.replace("    pass", "    def one(self):\n        return 4")
    )
    child = "target_module:Child.one"
    patch = make_patch(Substitute(child, "1", "10"), known=lambda _: workshop.digest(ONE))
    source = Source(NEEDS_NONE, ((child, workshop.digest(child)),), "the sample")
    engine = workshop.engine(patch._replace(sources=(source, *patch.sources)))
    assert only(engine).state is State.NOT_APPLICABLE


@pytest.mark.filterwarnings("ignore::megatron_patch.MegatronPatchWarning")
def test_compiled_only_source_is_drifted(workshop, both):
    path = workshop.write("target_module", MODULE)
    py_compile.compile(str(path), cfile=str(path.with_suffix(".pyc")))
    path.unlink()
    engine = workshop.engine(both)
    importlib.import_module("target_module")
    assert only(engine).state is State.DRIFTED
    assert "target_module has no source text" in only(engine).reason
    assert thing().one() == 1


@pytest.mark.filterwarnings("ignore::megatron_patch.MegatronPatchWarning")
def test_code_that_is_not_that_of_the_source_is_left_alone(workshop, both):
    """The file was edited after its import: its digest says nothing of what runs."""
    workshop.load("target_module", MODULE.replace("return 2", "return 3"))
    workshop.write("target_module", MODULE)
    engine = workshop.engine(both)
    assert only(engine).state is State.SHADOWED
    assert "not compiled from the module's source" in only(engine).reason
    assert (thing().one(), thing().two()) == (1, 3)


REGISTERING = """
HANDLERS = {}
def handles(name):
    def register(function):
        assert name not in HANDLERS
        HANDLERS[name] = function
        return function
    return register
@handles("one")
def one():
    return 1
"""


@pytest.mark.filterwarnings("ignore::megatron_patch.MegatronPatchWarning")
def test_a_wrapper_on_a_function_that_is_registered_is_reported_and_stays(workshop):
    """Its decorator refuses a second one, so that nothing can be compared with what it made."""
    module = workshop.load("target_module", REGISTERING)
    released = module.one
    module.one = wrapper = functools.wraps(released)(lambda: released() + 100)
    target = "target_module:one"
    patch = make_patch(Substitute(target, "1", "10"), known=lambda _: workshop.digest(target))
    engine = workshop.engine(patch)
    assert only(engine).state is State.SHADOWED
    assert module.one is wrapper
    assert module.HANDLERS == {"one": released}
    module.one = released
    engine.install(Settings(frozenset({"sample"}), strict=False))
    assert (only(engine).state, module.one()) == (State.APPLIED, 10)


@pytest.mark.filterwarnings("ignore::megatron_patch.MegatronPatchWarning")
def test_somebody_elses_patch_before_ours_is_reported_and_stays(workshop, both):
    module = importlib.import_module("target_module")
    original = module.Thing.two
    module.Thing.two = lambda self: 222
    engine = workshop.engine(both)
    assert only(engine).state is State.SHADOWED
    assert TWO in only(engine).reason
    assert (thing().one(), thing().two()) == (1, 222)
    module.Thing.two = original
    engine.install(Settings(frozenset({"sample"}), strict=False))
    assert (only(engine).state, thing().two()) == (State.APPLIED, 20)


@pytest.mark.filterwarnings("ignore::megatron_patch.MegatronPatchWarning")
def test_a_wrapper_around_the_original_is_somebody_elses_too(workshop, both):
    module = importlib.import_module("target_module")
    original = module.Thing.two
    theirs = module.Thing.two = lambda self: original(self) + 1
    engine = workshop.engine(both)
    assert only(engine).state is State.SHADOWED
    assert vars(module.Thing)["two"] is theirs


def test_somebody_elses_patch_after_ours_is_reported_and_stays(workshop, both):
    module = importlib.import_module("target_module")
    engine = workshop.engine(both)
    ours = vars(module.Thing)["two"]
    module.Thing.two = lambda self: ours(self) + 1
    assert only(engine).state is State.SHADOWED
    assert TWO in only(engine).reason
    engine.uninstall()
    assert (thing().one(), thing().two()) == (10, 21)
    assert only(engine).state is State.SHADOWED
    module.Thing.two = ours
    assert only(engine).state is State.APPLIED
    engine.uninstall()
    assert (thing().one(), thing().two()) == (1, 2)


@pytest.mark.filterwarnings("ignore::megatron_patch.MegatronPatchWarning")
def test_a_failure_half_way_rolls_everything_back(workshop, caplog):
    workshop.load(
        "target_module",
        """
        class Meta(type):
            def __setattr__(cls, name, value):
                if name == "extra" and not getattr(cls, "open", True):
                    raise RuntimeError("closed")
                super().__setattr__(name, value)


        class Thing(metaclass=Meta):
            open = False

            def one(self):
                return 1

            def two(self):
                return 2
        """,
    )
    patch = workshop.patch(
        Substitute(ONE, "1", "10"), Add("target_module:Thing.extra", "extra = 1")
    )
    original = vars(sys.modules["target_module"].Thing)["one"]
    engine = workshop.engine(patch)
    assert only(engine).state is State.FAILED
    assert "RuntimeError('closed')" in only(engine).reason
    assert vars(sys.modules["target_module"].Thing)["one"] is original
    assert "rolled back" in caplog.text


def test_strict_raises_out_of_the_import(workshop, both):
    workshop.write("target_module", MODULE.replace("return 2", "return 3"))
    workshop.engine(both, strict=True)
    with pytest.raises(StrictModeError, match="sample is drifted"):
        importlib.import_module("target_module")
    assert "target_module" not in sys.modules


def test_strict_raises_out_of_install_and_takes_everything_back(workshop, both):
    workshop.write("other_module", MODULE)
    workshop.write("target_module", MODULE.replace("return 2", "return 3"))
    good = Substitute("other_module:Thing.one", "1", "10")
    for name in ("target_module", "other_module"):
        importlib.import_module(name)
    with pytest.raises(StrictModeError):
        workshop.engine(workshop.patch(good, id="good"), both, strict=True)
    assert sys.modules["other_module"].Thing().one() == 1


def test_a_patch_of_two_modules_waits_for_both(workshop):
    workshop.write("target_module", MODULE)
    workshop.write("other_module", MODULE)
    patch = workshop.patch(
        Substitute(ONE, "1", "10"),
        Substitute("other_module:Thing.one", "1", "100"),
    )
    engine = workshop.engine(patch)
    importlib.import_module("target_module")
    assert (only(engine).state, thing().one()) == (State.PENDING, 1)
    importlib.import_module("other_module")
    assert (only(engine).state, thing().one()) == (State.APPLIED, 10)
    assert sys.modules["other_module"].Thing().one() == 100


@pytest.mark.parametrize("text", ["", "Thing = None\n", "def Thing():\n    pass\n"])
def test_a_module_without_the_class_is_imported_as_it_is(workshop, both, text):
    workshop.write("target_module", text)
    engine = workshop.engine(both)
    importlib.import_module("target_module")
    assert only(engine).state is State.NOT_APPLICABLE


def test_a_target_that_is_only_a_condition_is_left_as_it_is(workshop):
    module = workshop.load("target_module", MODULE)
    two = module.Thing.two
    patch = workshop.patch(
        Substitute(ONE, "1", "10"),
        Substitute(TWO, "return 2", "# why\nreturn 2"),
        Requires(TWO, "it is two"),
    )
    assert only(workshop.engine(patch)).state is State.APPLIED
    assert thing().one() == 10
    assert module.Thing.two is two


def test_one_warning_and_one_log_record(workshop, both, caplog):
    workshop.write("target_module", MODULE.replace("return 2", "return 3"))
    engine = workshop.engine(both)
    with pytest.warns(MegatronPatchWarning):
        importlib.import_module("target_module")
    for _ in range(3):  # a second warning would be an error
        engine.status()
        engine.install(Settings(frozenset({"sample"}), strict=False))
    assert [record.name for record in caplog.records] == ["megatron_patch"]


def accepting(workshop: Workshop, digest: str) -> Settings:
    return Settings(frozenset({"sample"}), accepted={"sample": frozenset({digest})})


def test_accepted_source_is_applied_and_the_reason_says_so(workshop, both):
    workshop.load("target_module", MODULE.replace("return 2", "return 2 + 0"))
    engine = Engine([both])
    workshop.engines.append(engine)
    engine.install(accepting(workshop, workshop.digest(TWO)))
    assert (only(engine).state, thing().two()) == (State.APPLIED, 20)
    assert only(engine).reason.startswith(f"accepted source: {TWO}: expected")


def test_a_digest_that_is_nowhere_raises_and_takes_everything_back(workshop, both):
    workshop.load("target_module", MODULE)
    engine = Engine([both])
    workshop.engines.append(engine)
    with pytest.raises(SettingsError, match="sample@0123456789abcdef is not the source of any"):
        engine.install(accepting(workshop, "0123456789abcdef"))
    assert (only(engine).state, thing().one()) == (State.DISABLED, 1)


@pytest.mark.parametrize("strict", [False, True])
def test_a_digest_that_is_nowhere_does_not_end_an_import_unless_strict(workshop, both, strict):
    """Whose code runs then is not ours, and it ran before."""
    engine = Engine([both])
    workshop.engines.append(engine)
    engine.install(accepting(workshop, "0123456789abcdef")._replace(strict=strict))
    words = "sample@0123456789abcdef is not the source of any"
    with pytest.raises(StrictModeError, match=words) if strict else warned(words):
        importlib.import_module("target_module")
    assert only(engine).state is State.FAILED
    assert strict or thing().one() == 1


def warned(words: str):  # type: ignore[no-untyped-def]
    return pytest.warns(MegatronPatchWarning, match=words)


@pytest.mark.parametrize(("rank", "expected"), [(None, 1), ("0", 1), ("3", 0)])
def test_one_summary_a_process_when_all_are_settled(
    workshop, both, caplog, monkeypatch, rank, expected
):
    caplog.set_level("INFO", "megatron_patch")
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    workshop.write("other_module", MODULE)
    has_it = {ONE: workshop.digest(ONE)}
    late = workshop.patch(Substitute("other_module:Thing.one", "1", "10"), id="late")
    upstreamed = workshop.patch(*both.variants[0].edits, id="upstreamed", has_it=has_it)
    engine = workshop.engine(both, late, upstreamed)
    importlib.import_module("target_module")
    assert caplog.messages == []
    importlib.import_module("other_module")
    importlib.reload(sys.modules["other_module"])
    engine.status()
    assert len(caplog.messages) == expected
    for message in caplog.messages:
        assert message.endswith(": 2 applied, 1 upstreamed, 0 drifted")


@pytest.mark.parametrize(
    ("constant", "names"), [("SERVER", "some_package"), ("LAYERS", ("some_package.module",))]
)
def test_what_not_every_engine_imports_holds_up_no_summary(
    workshop, both, caplog, monkeypatch, constant, names
):
    caplog.set_level("INFO", "megatron_patch")
    monkeypatch.setattr(f"megatron_patch.model.{constant}", names)
    (workshop.directory / "some_package").mkdir()
    workshop.write("some_package/module", MODULE)
    module = "some_package.module"
    edit = Substitute(f"{module}:Thing.one", "1", "10")
    late = make_patch(edit, known=digest_in(MODULE), id="late")
    engine = workshop.engine(both, late)
    assert caplog.messages == []
    importlib.import_module("target_module")
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith(": 1 applied, 0 upstreamed, 0 drifted, 1 pending")
    importlib.import_module(module)
    assert {entry.state for entry in engine.status()} == {State.APPLIED}
    assert len(caplog.messages) == 1
    for name in (module, "some_package"):
        sys.modules.pop(name)


def test_no_tree_is_kept_when_all_is_settled(workshop, both):
    importlib.import_module("target_module")
    workshop.engine(both)
    assert definitions.locate.cache_info().currsize == 0
    assert definitions._parse_module.cache_info().currsize == 0


def test_threads_that_import_at_once_all_see_the_patch(workshop, both):
    workshop.engine(both)
    barrier, seen = threading.Barrier(8), []

    def run() -> None:
        barrier.wait()
        seen.append(importlib.import_module("target_module").Thing().one())

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [10] * 8


def test_importing_the_package_imports_neither_torch_nor_megatron():
    code = (
        "import sys, megatron_patch;"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'megatron'}))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("there", [False, True])
def test_a_module_that_the_release_has_not_is_settled_with_its_package(
    workshop, tmp_path, monkeypatch, there
):
    """Otherwise the patch would stay pending, and ranks that compare it would never agree."""
    package = f"some_package_{there}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    if there:
        (tmp_path / package / "part.py").write_text("def one():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit = Substitute(f"{package}.part:one", "1", "10")
    engine = workshop.engine(make_patch(edit, known=digest_in("def one():\n    return 1\n")))
    assert only(engine).state is State.PENDING
    importlib.import_module(package)
    assert only(engine).state is (State.PENDING if there else State.NOT_APPLICABLE)
    if there:
        assert importlib.import_module(f"{package}.part").one() == 10


def test_what_a_class_has_from_python_itself_is_nothing_to_patch(workshop):
    workshop.load("target_module", "class Thing(Exception):\n    pass\n")
    edit = Substitute("target_module:Thing.__init__", "1", "10")
    engine = workshop.engine(make_patch(edit, known=lambda _: "0" * 16))
    assert only(engine).state is State.NOT_APPLICABLE
