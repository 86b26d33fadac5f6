"""The import of a module goes on as it does without us, whatever is found there."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import py_compile
import sys
import types
import warnings
from importlib.machinery import ModuleSpec, SourceFileLoader
from unittest import mock

import pytest

from megatron_patch import notices
from megatron_patch.edits import Substitute
from megatron_patch.errors import MegatronPatchWarning, StrictModeError
from megatron_patch.settings import Settings
from megatron_patch.states import State

from .sample import only
from .test_engine import MODULE, ONE, both, thing

__all__ = ["both"]

quiet = pytest.mark.filterwarnings("ignore::megatron_patch.MegatronPatchWarning")


@pytest.fixture
def lines(monkeypatch):  # type: ignore[no-untyped-def]
    """What is written to stderr."""
    found: list[str] = []
    monkeypatch.setattr(notices, "line", found.append)
    return found


class Bare:
    __slots__ = ()


class Hostile(types.ModuleType):
    def __getattribute__(self, name):
        raise RuntimeError(f"{name}: somebody looked")


def with_spec(spec):  # type: ignore[no-untyped-def]
    module = types.ModuleType("target_module")
    module.__spec__ = spec
    return module


STAND_INS = {
    "MagicMock": mock.MagicMock,
    "Mock with a MagicMock for its spec": lambda: with_spec(mock.MagicMock()),
    "Mock that says it is a spec": lambda: with_spec(mock.MagicMock(spec=ModuleSpec)),
    "module without a spec": lambda: types.ModuleType("target_module"),
    "module with an empty spec": lambda: with_spec(ModuleSpec("target_module", None)),
    "namespace": types.SimpleNamespace,
    "object without attributes": Bare,
    "module that raises when it is looked at": lambda: Hostile("target_module"),
}


@quiet
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", STAND_INS)
def test_a_stand_in_for_a_module_is_drifted_and_left_alone(workshop, both, monkeypatch, kind, when):
    if when == "before":
        monkeypatch.setitem(sys.modules, "target_module", STAND_INS[kind]())
    engine = workshop.engine(both)
    if when == "after":
        monkeypatch.setitem(sys.modules, "target_module", STAND_INS[kind]())
    found = sys.modules["target_module"]
    assert only(engine).state is State.DRIFTED
    assert "target_module has no source text" in only(engine).reason
    engine.uninstall()
    engine.install(Settings(frozenset({"sample"})))
    assert only(engine).state is State.DRIFTED
    assert sys.modules["target_module"] is found


def test_a_module_whose_import_is_forbidden_is_pending(workshop, both, monkeypatch):
    monkeypatch.setitem(sys.modules, "target_module", None)
    engine = workshop.engine(both)
    assert only(engine).state is State.PENDING
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("target_module")
    assert only(engine).state is State.PENDING
    monkeypatch.delitem(sys.modules, "target_module")
    importlib.import_module("target_module")
    assert only(engine).state is State.APPLIED


@quiet
@pytest.mark.parametrize("stand_in", [None, mock.MagicMock()])
def test_a_second_module_that_is_forbidden_or_a_stand_in(workshop, monkeypatch, stand_in):
    workshop.write("target_module", MODULE)
    workshop.write("other_module", MODULE)
    other = Substitute("other_module:Thing.one", "1", "100")
    patch = workshop.patch(Substitute(ONE, "1", "10"), other)
    monkeypatch.setitem(sys.modules, "other_module", stand_in)
    engine = workshop.engine(patch)
    importlib.import_module("target_module")
    assert (only(engine).state, thing().one()) == (State.DRIFTED, 1)


def test_a_stand_in_for_a_parent_does_not_hide_what_is_below_its_path(tmp_path, monkeypatch):
    from megatron_patch.sources import read_source

    (tmp_path / "leaf.py").write_text("x = 1\n")
    parent = types.ModuleType("stand_in_package")
    parent.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "stand_in_package", parent)
    assert read_source("stand_in_package.leaf") == "x = 1\n"
    monkeypatch.setitem(sys.modules, "stand_in_package", mock.MagicMock())
    assert read_source("stand_in_package.leaf") is None


@quiet
@pytest.mark.parametrize("left", ["nothing", "compiled"])
@pytest.mark.parametrize("when", ["imported before", "in its own import"])
def test_a_file_that_is_gone_when_it_is_judged(workshop, both, left, when):
    path = workshop.directory / "target_module.py"
    if left == "compiled":
        py_compile.compile(str(path), cfile=str(path.with_suffix(".pyc")))
    if when == "imported before":
        importlib.import_module("target_module")
        path.unlink()
    else:
        workshop.write("target_module", f"import os; os.remove({str(path)!r})\n" + MODULE)
    engine = workshop.engine(both)
    importlib.import_module("target_module")
    assert only(engine).state is State.DRIFTED
    assert "source text" in only(engine).reason
    assert (thing().one(), thing().two()) == (1, 2)


TEXTS = {
    "980 terms": " + ".join(["1"] * 980),
    "980 terms in a list": f"[{' + '.join(['1'] * 980)}]",
    "a number of 6000 digits": "0x" + "f" * 6000,
    "90 brackets": "[" * 90 + "]" * 90,
}


@quiet
@pytest.mark.parametrize("kind", TEXTS)
def test_source_that_is_too_much_for_us_is_drifted(workshop, both, kind):
    """In the target itself, where it is looked at as a whole."""
    workshop.write("target_module", MODULE.replace("return 2", f"return 2, {TEXTS[kind]}"))
    engine = workshop.engine(both)
    importlib.import_module("target_module")
    assert only(engine).state is State.DRIFTED
    assert (thing().one(), thing().two()[0]) == (1, 2)


def import_with(free: int) -> None:
    """Import the module with so many frames of the stack left."""

    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        else:
            importlib.import_module("target_module")

    sys.modules.pop("target_module", None)
    importlib.import_module("importlib.util")
    deep(sys.getrecursionlimit() - len([*frames()]) - free)


def frames():  # type: ignore[no-untyped-def]
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        yield frame


@quiet
def test_an_import_from_deep_below_goes_on(workshop, both, lines):
    """Where the stack is nearly used up, an import that works without us works with us."""

    def works(free: int) -> bool:
        try:
            import_with(free)
        except RecursionError:
            return False
        return True

    least = next(free for free in range(5, 100) if works(free))
    sys.modules.pop("target_module", None)
    engine = workshop.engine(both)
    seen = set()
    for free in range(least + 3, least + 60):  # our own finder and loader take some
        import_with(free)
        state, one = only(engine).state, thing().one()
        assert one == (10 if state is State.APPLIED else 1)
        seen.add(state)
        assert state is State.APPLIED or "RecursionError" in only(engine).reason
    assert {State.FAILED, State.APPLIED} <= seen


class Odd(SourceFileLoader):
    """A loader whose source is whatever a test says, or raises."""

    answer: object = None

    def get_source(self, fullname):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@quiet
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"bytes", "has no source text"),
        (RuntimeError("encrypted"), "cannot be read: RuntimeError: encrypted"),
        (PermissionError(13, "Permission denied"), "cannot be read: PermissionError"),
        (ImportError("loader for a cannot handle b"), "cannot be read: ImportError"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "does not parse"),
        (SyntaxError("unknown encoding: klingon"), "does not parse"),
        ("x = '\ud800'\n", "does not parse"),
        ("x = '\0'\n", "does not parse"),
    ],
)
def test_a_loader_that_gives_no_source(workshop, both, monkeypatch, answer, says):
    class Finder:
        @staticmethod
        def find_spec(fullname, path=None, target=None):
            if fullname != "target_module":
                return None
            file = str(workshop.directory / "target_module.py")
            loader = Odd(fullname, file)
            loader.answer = answer
            return importlib.util.spec_from_file_location(fullname, file, loader=loader)

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    engine = workshop.engine(both)
    importlib.import_module("target_module")
    assert only(engine).state is State.DRIFTED
    assert says in only(engine).reason
    assert thing().one() == 1


@quiet
def test_an_error_of_ours_is_a_state_and_not_the_end_of_an_import(workshop, both, mocker):
    mocker.patch("megatron_patch.judge.judge", side_effect=ZeroDivisionError("ours"))
    engine = workshop.engine(both)
    importlib.import_module("target_module")
    assert only(engine).state is State.FAILED
    assert only(engine).reason == "ZeroDivisionError: ours, while judging"
    assert thing().one() == 1


def test_an_error_of_ours_before_anything_is_judged(workshop, both, mocker, lines):
    engine = workshop.engine(both)
    mocker.patch.object(engine, "_settle", side_effect=ZeroDivisionError("ours"))
    importlib.import_module("target_module")
    mocker.stopall()
    words = "ZeroDivisionError: ours, after target_module was imported"
    assert lines == [f"{words}; Megatron runs as it is"]
    with pytest.warns(MegatronPatchWarning, match=words):
        assert only(engine).state is State.FAILED


@pytest.mark.parametrize(
    "where", ["megatron_patch.judge.judge", "megatron_patch.engine.Engine._settle"]
)
def test_an_error_of_ours_ends_an_import_in_strict_mode(workshop, both, mocker, where):
    workshop.engine(both, strict=True)
    mocker.patch(where, side_effect=ZeroDivisionError("ours"))
    with pytest.raises(StrictModeError, match="ZeroDivisionError: ours"):
        importlib.import_module("target_module")
    mocker.stopall()


def test_a_warning_that_is_an_error_everywhere_is_a_line(workshop, both, lines):
    workshop.write("target_module", MODULE.replace("return 2", "return 3"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = workshop.engine(both)
        importlib.import_module("target_module")
    assert (only(engine).state, thing().two()) == (State.DRIFTED, 3)
    (line,) = lines
    assert line.startswith("sample is drifted: unknown source")


@quiet
def test_a_handler_of_somebody_elses_that_raises(workshop, both, lines, mocker):
    workshop.write("target_module", MODULE.replace("return 2", "return 3"))
    engine = workshop.engine(both)
    mocker.patch.object(notices.logger(), "warning", side_effect=OSError("no log server"))
    importlib.import_module("target_module")
    assert only(engine).state is State.DRIFTED
    (line,) = lines
    assert line.endswith("(and logging it raised OSError: no log server)")


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_process_without_stderr(monkeypatch, tmp_path, stream):
    monkeypatch.undo()  # of what makes an error of a line
    if stream:
        stream = (tmp_path / "stream").open("w")
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    notices.line("a message")


def test_a_line_is_one(monkeypatch, capsys):
    monkeypatch.undo()
    notices.line("several\n  lines")
    assert capsys.readouterr().err == "megatron_patch: several lines\n"


def test_a_module_that_changes_its_name_is_patched(workshop, both):
    workshop.write("target_module", MODULE + "__name__ = 'another'\n")
    engine = workshop.engine(both)
    importlib.import_module("target_module")
    assert thing().one() == 10  # before anybody asked for the state
    assert only(engine).state is State.APPLIED


def test_a_copy_that_is_executed_on_the_side_is_none_of_ours(workshop, both):
    engine = workshop.engine(both)
    spec = importlib.util.find_spec("target_module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.Thing().one() == 1
    assert only(engine).state is State.PENDING
    importlib.import_module("target_module")
    assert only(engine).state is State.APPLIED


def test_a_loader_can_be_copied(workshop, both):
    workshop.engine(both)
    spec = importlib.util.find_spec("target_module")
    assert copy.copy(spec.loader).get_source("target_module") == MODULE


@quiet
def test_a_loader_whose_modules_take_no_attributes(workshop, both, monkeypatch):
    class Loader:
        def create_module(self, spec):
            return Bare()

        def exec_module(self, module):
            pass

    class Finder:
        @staticmethod
        def find_spec(fullname, path=None, target=None):
            return ModuleSpec(fullname, Loader()) if fullname == "target_module" else None

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    engine = workshop.engine(both)
    assert isinstance(importlib.import_module("target_module"), Bare)
    assert only(engine).state is State.DRIFTED


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python asks finders for specs alone")
@pytest.mark.filterwarnings("ignore::ImportWarning", "ignore::DeprecationWarning")
def test_a_finder_of_the_old_kind_still_comes_first(workshop, both, monkeypatch):
    class Legacy:
        @staticmethod
        def find_module(name, path=None):
            return Legacy if name == "target_module" else None

        @staticmethod
        def load_module(name):
            module = sys.modules[name] = types.ModuleType(name)
            exec(MODULE.replace("return 1", "return 5"), vars(module))
            return module

    monkeypatch.setattr(sys, "meta_path", [Legacy, *sys.meta_path])
    workshop.engine(both)
    importlib.import_module("target_module")
    assert thing().one() == 5
