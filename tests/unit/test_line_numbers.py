"""What tools see of edited code: coverage, breakpoints, tracebacks."""

from __future__ import annotations

import bdb
import importlib
import inspect
import json
import linecache
import subprocess
import sys
import traceback

import pytest

from megatron_patch import tree_edits
from megatron_patch.edits import Add, Substitute
from megatron_patch.settings import Settings
from megatron_patch.states import State

from .sample import Workshop, only
from .trees import environment

MODULE = """\
class Thing:
    def method(self, x):
        before = x + 1

        if before > 1:
            total = (
                before
                + 2
            )
        else:
            total = 0
        after = total
        return after


def last():
    return 1 / 0
"""

TARGET = "target_module:Thing.method"


def patch_of(workshop: Workshop, find: str, put: str):  # type: ignore[no-untyped-def]
    return workshop.patch(Substitute(TARGET, find, put))


@pytest.fixture
def patched(workshop):
    """``Thing``, with one statement of its method exchanged, and one more before it."""
    workshop.write("target_module", MODULE)
    engine = workshop.engine(
        patch_of(workshop, "after = total", "extra = total\nafter = extra * 2")
    )
    module = importlib.import_module("target_module")
    assert only(engine).state is State.APPLIED, only(engine).reason
    return module.Thing


def lines_run(function, *args):  # type: ignore[no-untyped-def]
    """The numbers of the lines that a tracer sees."""
    seen: list[int] = []

    def trace(frame, event, arg):
        if frame.f_code is function.__code__ and event == "line":
            seen.append(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*args)
    finally:
        sys.settrace(before)
    return seen


def test_lines_that_an_edit_leaves_alone_keep_their_numbers_and_others_are_behind_the_file(patched):
    size = len(MODULE.splitlines())
    assert patched().method(1) == 8
    # The order in which the lines of one statement are visited depends on the version of Python.
    seen = set(lines_run(patched.method, patched(), 1)) - {6, 8}
    assert seen == {3, 5, 7, size + 1, size + 2, 13}
    assert patched.method.__code__.co_filename == sys.modules["target_module"].__file__
    assert patched.method.__code__.co_firstlineno == 2


def test_a_breakpoint_in_the_file_is_hit(patched):
    class Debugger(bdb.Bdb):
        hits: list[int] = []  # noqa: RUF012

        def user_line(self, frame):
            if self.break_here(frame):
                self.hits.append(frame.f_lineno)
            self.set_continue()

    debugger = Debugger()
    assert debugger.set_break(sys.modules["target_module"].__file__, 13) is None
    before = sys.gettrace()
    try:
        debugger.runcall(patched().method, 1)
    finally:
        sys.settrace(before)
        debugger.clear_all_breaks()
    assert debugger.hits == [13]


def test_a_traceback_shows_the_line_of_an_edit_as_ours(workshop):
    workshop.write("target_module", MODULE)
    workshop.engine(patch_of(workshop, "after = total", "after = total / 0"))
    thing = importlib.import_module("target_module").Thing()
    with pytest.raises(ZeroDivisionError) as caught:
        thing.method(1)
    text = "".join(traceback.format_exception(caught.value))
    assert "# megatron_patch sample: after = total / 0" in text
    assert str(workshop.directory / "target_module.py") in text
    assert "after = total\n" not in text
    assert "return 1 / 0" in inspect.getsource(sys.modules["target_module"].last)


def test_a_traceback_through_a_line_that_was_left_alone_shows_it(workshop):
    workshop.write("target_module", MODULE)
    workshop.engine(patch_of(workshop, "before > 1", "before > 0 / x"))
    thing = importlib.import_module("target_module").Thing()
    with pytest.raises(TypeError) as caught:
        thing.method("a")
    entries = traceback.extract_tb(caught.value.__traceback__)
    assert (entries[-1].lineno, entries[-1].line) == (3, "before = x + 1")


def positions(code):  # type: ignore[no-untyped-def]
    """For each line number in the code, the columns in it."""
    found: dict[int, set[tuple[int, int]]] = {}
    for line, end, column, end_column in code.co_positions():
        if line == end and line is not None:
            found.setdefault(line, set()).add((column, end_column))
    return found


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code has no columns")
def test_what_is_left_alone_within_a_hunk_keeps_its_lines_and_columns(workshop):
    workshop.write("target_module", MODULE)
    importlib.import_module("target_module")
    before = positions(sys.modules["target_module"].Thing.method.__code__)
    branch = "if before > 1:\n    total = (before + {})\nelse:\n    total = 0\n"
    hunk = patch_of(workshop, branch.format("2"), branch.format("3"))
    engine = workshop.engine(hunk)
    assert only(engine).state is State.APPLIED, only(engine).reason
    after = positions(sys.modules["target_module"].Thing.method.__code__)
    size = len(MODULE.splitlines())
    assert {line: after[line] for line in (3, 5, 11, 12, 13)} == {
        line: before[line] for line in (3, 5, 11, 12, 13)
    }
    assert sorted(set(after) - set(before)) == [size + 1]
    assert linecache.getlines(sys.modules["target_module"].__file__)[size:] == [
        "# megatron_patch sample: total = (before + 3)\n"
    ]


def test_what_one_patch_has_put_there_stays_its_own_under_another(workshop):
    workshop.write("target_module", MODULE)
    first = patch_of(workshop, "after = total", "if total:\n    after = 1\nelse:\n    after = 2")
    second = patch_of(
        workshop,
        "if total:\n    after = 1\nelse:\n    after = 2",
        "if total:\n    after = 1\nelse:\n    after = 3",
    )._replace(id="second")
    engine = workshop.engine(first, second)
    module = importlib.import_module("target_module")
    assert {entry.state for entry in engine.status()} == {State.APPLIED}
    size = len(MODULE.splitlines())
    shown = linecache.getlines(module.__file__)
    assert shown[size:] == [
        "# megatron_patch sample: if total:\n",
        "# megatron_patch sample: after = 1\n",
        "# megatron_patch sample: else:\n",
        "# megatron_patch sample: after = 2\n",
        "# megatron_patch second: after = 3\n",
    ]
    assert {size + 1, size + 2} <= set(lines_run(module.Thing.method, module.Thing(), 1))
    assert {size + 1, size + 5} <= set(lines_run(module.Thing.method, module.Thing(), -1))


def test_the_lines_of_several_patches_are_all_shown(workshop):
    workshop.write("target_module", MODULE)
    first = patch_of(workshop, "after = total", "after = total + 1")
    second = patch_of(workshop, "before = x + 1", "before = x + 2")._replace(id="second")
    engine = workshop.engine(first, second)
    module = importlib.import_module("target_module")
    assert {entry.state for entry in engine.status()} == {State.APPLIED}
    shown = linecache.getlines(module.__file__)
    own = MODULE.splitlines(keepends=True)
    assert shown[: len(own)] == own
    assert shown[len(own) :] == [
        "# megatron_patch sample: after = total + 1\n",
        "# megatron_patch second: before = x + 2\n",
    ]
    linecache.checkcache(module.__file__)
    assert linecache.getlines(module.__file__) == shown


def test_patches_that_are_put_in_again_are_the_same_code(workshop, mocker):
    workshop.write("target_module", MODULE)
    patch = patch_of(workshop, "after = total", "after = total + 1")
    engine = workshop.engine(patch)
    method = importlib.import_module("target_module").Thing.method
    released = inspect.getsource(sys.modules["target_module"])
    before = method.__code__
    edited = mocker.spy(tree_edits, "edited")
    engine.uninstall()
    assert method.__code__ is not before
    engine.install(Settings(frozenset({patch.id})))
    assert method.__code__ is before
    assert edited.call_count == 0
    # Not where the file is another one, as after an update under a running process.
    engine.uninstall()
    workshop.write("target_module", released.replace("return 1 / 0", "return 2 / 0"))
    importlib.reload(sys.modules["target_module"])
    engine.install(Settings(frozenset({patch.id})))
    assert only(engine).state is State.APPLIED, only(engine).reason
    assert edited.call_count == 1


def helper(self):  # type: ignore # the target's own name
    return [] / 0


def test_a_helper_of_ours_has_its_own_file_and_lines(workshop):
    workshop.write("target_module", MODULE)
    edit = Substitute(TARGET, "after = total", "after = self.helper()")
    workshop.engine(workshop.patch(edit, Add("target_module:Thing.helper", helper)))
    thing = importlib.import_module("target_module").Thing()
    with pytest.raises(TypeError) as caught:
        thing.method(1)
    entry = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (entry.filename, entry.line) == (__file__, "return [] / 0")
    assert entry.lineno == inspect.getsourcelines(helper)[1] + 1


def test_a_helper_that_is_a_text_is_shown_too(workshop):
    workshop.write("target_module", MODULE)
    edit = Substitute(TARGET, "after = total", "after = helper(total)")
    text = "helper = lambda value: value / 0\n"
    workshop.engine(workshop.patch(edit, Add("target_module:helper", text)))
    thing = importlib.import_module("target_module").Thing()
    with pytest.raises(ZeroDivisionError) as caught:
        thing.method(1)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].line == text.strip()


SCRIPT = """
import json, sys
import coverage

sys.path.insert(0, sys.argv[1])
run = coverage.Coverage(include=[sys.argv[1] + "/*"], data_file=None, config_file=False)
run.start()
from sample_patch import engine
import target_module

state = engine.status()[0].state.value
value = target_module.Thing().method(1)
run.stop()
_, statements, _, missing, _ = run.analysis2(target_module)
print(json.dumps([state, value, statements, missing]))
"""

PATCH = """
from megatron_patch.engine import Engine
from megatron_patch.definitions import locate
from megatron_patch.model import Kind, Patch, Source, Variant
from megatron_patch.edits import Substitute
from megatron_patch.settings import Settings

TARGET = "target_module:Thing.method"
EDIT = Substitute(TARGET, "after = total", "after = total * 2")
PATCH = Patch(
    "sample", Kind.CORRECTNESS, "", "", "", None, None, None, None, "", "", "", TARGET,
    (Variant("", (EDIT,)),), sources=(Source("", ((TARGET, {digest!r}),), ""),),
)
engine = Engine((PATCH,))
engine.install(Settings(frozenset({{"sample"}})))
"""


def test_coverage_counts_what_an_edit_leaves_alone(workshop):
    workshop.write("target_module", MODULE)
    digest = workshop.digest(TARGET)
    workshop.write("sample_patch", PATCH.format(digest=digest))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(workshop.directory)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    state, value, statements, missing = json.loads(done.stdout)
    assert (state, value) == ("applied", 8)
    assert {3, 5, 13} <= set(statements)
    # Not run: the other branch, the statement that ours has replaced, the other function.
    assert missing == [11, 12, 17]
