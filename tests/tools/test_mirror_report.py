"""The report on small made-up checkouts and mirrors."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_patch.edits import Add, Before, Replace
from megatron_patch.fingerprint import digest
from tests.unit.sample import make_patch
from tools import mirror_report

CHECKOUT_TEST = """
    raise RuntimeError("imported")


    def test_getter():
        context.get_views()


    def test_other():
        context.something_else()
"""


def get_views(self):  # type: ignore[no-untyped-def]
    return None


SERIES = (
    make_patch(
        Add("package.module:Context._helper", get_views),
        Replace("package.module:Context.get_views", get_views),
        Before("package.module:Context.__init__", get_views),
        known=lambda _: "0" * 16,
        has_it={"package.module:Context.new_name": "0" * 16},
    ),
)


@dataclass
class Trees:
    """A checkout of Megatron-LM and a mirror of its tests, both made up."""

    root: Path

    @property
    def checkout(self) -> Path:
        return self.root / "Megatron-LM"

    @property
    def mirror(self) -> Path:
        return self.root / "mirror"

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")

    def upstream(self, text: str, path: str = "inference/contexts/test_a.py") -> None:
        self.write(f"Megatron-LM/tests/unit_tests/{path}", text)

    def mark(self, path: str, test: str, value: str) -> None:
        name = test.rpartition(".")[2]
        mark = f'@mirrors("{path}", "{test}", digest="{value}")'
        file = f"mirror/{path}"
        before = (self.root / file).read_text() if (self.root / file).exists() else ""
        self.write(file, f"{before}\n{mark}\ndef {name}():\n    raise RuntimeError\n")

    def rows(self) -> list[mirror_report.Row]:
        return mirror_report.report(self.checkout, self.mirror, SERIES)

    def states(self) -> dict[str, str]:
        return {row.test: row.state for row in self.rows()}

    def touches(self) -> dict[str, tuple[str, ...]]:
        return {row.test: row.touches for row in self.rows()}


@pytest.fixture
def trees(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    made = Trees(tmp_path)
    made.mirror.mkdir()
    monkeypatch.setattr(mirror_report, "MIRROR", made.mirror)
    monkeypatch.setattr(mirror_report, "SERIES", SERIES)
    return made


def digest_of(code: str) -> str:
    return digest(ast.parse(textwrap.dedent(code)).body[0])


GETTER = digest_of("def test_getter():\n    context.get_views()\n")


def test_an_unmirrored_test_is_listed_and_one_of_something_else_is_not(trees):
    trees.upstream(CHECKOUT_TEST)
    (row,) = trees.rows()
    assert (row.path, row.test) == ("contexts/test_a.py", "test_getter")
    assert (row.state, row.touches) == ("unmirrored", ("get_views",))
    assert (row.digest, row.mirrored_digest, row.mirrored_by) == (GETTER, None, None)
    assert mirror_report.main(["--megatron", str(trees.checkout)]) == 1


def test_a_mirrored_test(trees, capsys):
    trees.upstream(CHECKOUT_TEST)
    trees.mark("contexts/test_a.py", "test_getter", GETTER)
    (row,) = trees.rows()
    assert (row.state, row.mirrored_by) == ("mirrored", "contexts/test_a.py:3")
    assert mirror_report.main(["--megatron", str(trees.checkout)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 upstream tests: 1 mirrored, 0 changed, 0 unmirrored, 0 gone"


def test_comments_docstrings_and_formatting_are_no_change(trees):
    trees.upstream(
        '''
        def test_getter():
            """Says something."""
            context.get_views(
            )  # new
        '''
    )
    trees.mark("contexts/test_a.py", "test_getter", GETTER)
    assert trees.states() == {"test_getter": "mirrored"}


@pytest.mark.parametrize(
    "code",
    [
        "def test_getter():\n    context.get_views(8)\n",
        "@parametrize('x', [1])\ndef test_getter():\n    context.get_views()\n",
    ],
)
def test_a_changed_test(trees, code, capsys):
    trees.upstream(code)
    trees.mark("contexts/test_a.py", "test_getter", GETTER)
    assert trees.states() == {"test_getter": "changed"}
    assert mirror_report.main(["--megatron", str(trees.checkout)]) == 1
    assert f"(was {GETTER}, is {digest_of(code)})" in capsys.readouterr().out


def test_a_test_that_is_gone_or_whose_file_is(trees):
    trees.upstream("def test_renamed():\n    pass\n")
    trees.mark("contexts/test_a.py", "test_getter", GETTER)
    trees.mark("engines/test_b.py", "TestB.test_x", GETTER)
    assert trees.states() == {"test_getter": "gone", "TestB.test_x": "gone"}
    assert mirror_report.main(["--megatron", str(trees.checkout)]) == 1


def test_what_touches_no_target_is_watched_when_it_is_mirrored(trees):
    trees.upstream(CHECKOUT_TEST)
    trees.mark("contexts/test_a.py", "test_getter", GETTER)
    trees.mark("contexts/test_a.py", "test_other", GETTER)
    assert trees.states() == {"test_getter": "mirrored", "test_other": "changed"}
    assert trees.touches()["test_other"] == ()


def test_a_file_outside_inference_is_watched_when_it_is_mirrored(trees):
    trees.upstream(CHECKOUT_TEST)
    trees.upstream(CHECKOUT_TEST, "models/test_m.py")
    trees.mark("contexts/test_a.py", "test_getter", GETTER)
    assert [row.path for row in trees.rows()] == ["contexts/test_a.py"]
    trees.mark("models/test_m.py", "test_getter", GETTER)
    assert {row.path: row.state for row in trees.rows()} == {
        "contexts/test_a.py": "mirrored",
        "models/test_m.py": "mirrored",
    }


def test_targets_are_those_of_edits_and_upstreamed_ones():
    assert mirror_report.target_names(SERIES) == {"get_views", "new_name"}


def test_a_target_is_found_where_and_however_it_is_named(trees):
    trees.upstream(
        """
        def test_attribute(): c.new_name()
        def test_keyword(): Namespace(new_name=1)
        def test_string(): patch(c, "new_name")
        def test_argument(new_name): pass
        def test_part_of_a_string(): print("a new_name here")
        def test_longer_name(): c.new_name_2()
        def test_dunder(): c.__init__()
        def test_helper_of_ours(): c._helper()
        async def test_async(): await c.new_name()
        def helper_new_name(): c.new_name()
        """
    )
    assert set(trees.states()) == {
        "test_async",
        "test_attribute",
        "test_argument",
        "test_keyword",
        "test_string",
    }


def test_helpers_fixtures_and_methods_of_the_module_are_followed(trees):
    trees.upstream(
        """
        def inner(): c.get_views()
        def outer(): inner()
        def test_helper(): outer()

        @pytest.fixture
        def prepared(): inner()
        def test_fixture(prepared): pass
        @pytest.mark.usefixtures("prepared")
        def test_named_fixture(): pass
        def test_neither(): pass

        class Base:
            def build(self): inner()
        class TestA(Base):
            def other(self): pass
            def test_base(self): self.build()
            def test_own(self): self.other()
        class TestB:
            def build(self): pass
            def test_same_name_elsewhere(self): self.build()
        class TestC:
            def setup_method(self): inner()
            def test_setup(self): pass
        class TestD:
            @pytest.fixture(autouse=True)
            def around(self): inner()
            def test_autouse(self): pass
        """
    )
    assert set(trees.states()) == {
        "test_helper",
        "test_fixture",
        "test_named_fixture",
        "TestA.test_base",
        "TestC.test_setup",
        "TestD.test_autouse",
    }


def test_helpers_that_call_each_other_come_to_an_end(trees):
    trees.upstream(
        """
        def one(): two()
        def two(): one(); c.get_views()
        def test_it(): one()
        """
    )
    assert trees.touches() == {"test_it": ("get_views",)}


def test_json(trees, capsys):
    trees.upstream(CHECKOUT_TEST)
    trees.mark("engines/test_b.py", "TestB.test_x", "1" * 16)
    assert mirror_report.main(["--megatron", str(trees.checkout), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "summary": {"mirrored": 0, "changed": 0, "unmirrored": 1, "gone": 1},
        "tests": [
            {
                "path": "contexts/test_a.py",
                "test": "test_getter",
                "state": "unmirrored",
                "digest": GETTER,
                "mirrored_digest": None,
                "mirrored_by": None,
                "touches": ["get_views"],
            },
            {
                "path": "engines/test_b.py",
                "test": "TestB.test_x",
                "state": "gone",
                "digest": None,
                "mirrored_digest": "1" * 16,
                "mirrored_by": "engines/test_b.py:3",
                "touches": [],
            },
        ],
    }


def test_columns_are_aligned(trees, capsys):
    trees.upstream("def test_a_long_name():\n    c.get_views()\ndef test_b():\n    c.new_name()\n")
    mirror_report.main(["--megatron", str(trees.checkout)])
    head, *rows, empty, _ = capsys.readouterr().out.splitlines()
    assert len(rows) == 2
    assert empty == ""
    column = head.index("touches")
    assert [row[column:] for row in rows] == ["get_views", "new_name"]
    assert {row[column - 2 : column] for row in rows} == {"  "}


def test_not_a_checkout(trees, capsys):
    (trees.root / "wheel" / "megatron" / "core").mkdir(parents=True)
    assert mirror_report.main(["--megatron", str(trees.root / "wheel")]) == 2
    error = capsys.readouterr().err
    assert str(trees.root / "wheel") in error
    assert "tests/unit_tests/inference" in error
    assert "wheel has no tests" in error


def test_a_test_file_that_does_not_parse(trees, capsys):
    trees.upstream("def test_(:\n")
    assert mirror_report.main(["--megatron", str(trees.checkout)]) == 2
    assert "test_a.py does not parse" in capsys.readouterr().err


def test_a_mark_that_is_no_literal(trees, capsys):
    trees.upstream(CHECKOUT_TEST)
    trees.write("mirror/test_m.py", "@mirrors(PATH, 'test_x', digest='')\ndef test_x(): pass\n")
    assert mirror_report.main(["--megatron", str(trees.checkout)]) == 2
    assert "test_m.py:2: expected @mirrors('path', 'test', digest='...')" in capsys.readouterr().err


def test_as_a_command_it_imports_neither_torch_nor_megatron_nor_the_tests(trees):
    trees.upstream(CHECKOUT_TEST)
    tool = Path(mirror_report.__file__)
    code = (
        f"import runpy, sys; sys.argv = ['mirror_report', '--megatron', {str(trees.checkout)!r}]\n"
        f"try: runpy.run_path({str(tool)!r}, run_name='__main__')\n"
        "except SystemExit as done: print('status', done.code)\n"
        "print([m for m in sys.modules if m.partition('.')[0] in ('torch', 'megatron', 'tests')])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    # Of our own mirror every test is gone from this checkout.
    assert done.stdout.splitlines()[-2:] == ["status 1", "[]"]
    assert done.stderr == ""


def test_each_mark_of_our_mirror_is_on_a_test_of_the_same_path_and_name():
    mirror = mirror_report.REPOSITORY / "tests" / "upstream"
    marks = mirror_report.read_marks(mirror)
    assert marks
    for mark in marks:
        path, line = mark.where.split(":")
        assert mark.path == path
        module = mirror_report.Module.parse((mirror / path).read_text(encoding="utf-8"))
        assert module.functions[mark.test].lineno == int(line)
        assert len(mark.digest) == 16
