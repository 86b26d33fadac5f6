"""Records that others give in files of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from megatron_patch import outside
from megatron_patch.backports import SERIES
from megatron_patch.errors import SettingsError
from megatron_patch.judge import judge
from megatron_patch.model import Origin
from megatron_patch.source_tree import SourceTree
from megatron_patch.verdicts import Verdict

from .sample import digest_in
from .source_trees import MODULE, PATH, write
from .trees import PACKAGE_PARENT, command, python

TEXT = """
class Thing:
    def one(self, x):
        return x + 1

    def two(self):
        return 2
"""
ONE = f"{MODULE}:Thing.one"
DIGEST = digest_in(TEXT)(ONE)
RECORD = f"""
from __future__ import annotations

from typing import Any

from megatron_patch import hunks
from megatron_patch.edits import Before
from megatron_patch.model import Kind, Patch, Source, Variant

HUNKS = hunks.beside(__file__)
ONE = "{ONE}"


def reset(self: Any) -> None:
    self.there = None


PATCH = Patch(
    id="their-own",
    kind=Kind.CORRECTNESS,
    summary="Add two",
    symptom="one is added",
    outcome="two are added",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16",
    removal="never",
    updated="2026-11-26",
    target=ONE,
    variants=(
        Variant(
            "the fork",
            (*HUNKS.of("the fork"), Before("{MODULE}:Thing.two", reset, "it is new")),
        ),
    ),
    sources=(Source("the fork", ((ONE, "{DIGEST}"),), "the fork"),),
)
PATCHES = (PATCH,)
"""
DIFF = f"""\
--- a/{PATH}
+++ b/{PATH}
@@ Thing.one @@
-$value + 1
+$value + 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "records.py"
    found.write_text(RECORD)
    found.with_suffix(".diff").write_text(DIFF)
    return found


@pytest.fixture
def fork(tmp_path: Path) -> SourceTree:
    tree = write(tmp_path / "fork", TEXT)
    (tmp_path / "fork" / "megatron" / "__init__.py").touch()
    return tree


def records(*files: Path):  # type: ignore[no-untyped-def]
    return outside.records(os.pathsep.join(map(str, files)), SERIES)


def test_a_record_is_judged_like_ours(file, fork):
    (patch,) = records(file)
    assert (patch.id, patch.origin) == ("their-own", Origin.OUTSIDE)
    assert judge(patch, fork.read).verdict is Verdict.APPLICABLE
    write(fork.root, TEXT.replace("x + 1", "x + 3"))
    assert judge(patch, fork.read).verdict is Verdict.DRIFTED


def test_several_files_are_read_in_their_order(file, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(RECORD.replace("their-own", "other-one"))
    other.with_suffix(".diff").write_text(DIFF)
    assert [patch.id for patch in records(other, file)] == ["other-one", "their-own"]


def test_every_command_knows_it(file, fork, tmp_path):
    variables = {"MEGATRON_PATCH_RECORDS": str(file)}
    here = ("--megatron", str(fork.root))
    listed = command("list", **variables).stdout
    assert listed.splitlines()[-2:] == [
        "their-own  correctness  outside  megatron-core >=0.16",
        "    Add two",
    ]
    assert "of MEGATRON_PATCH_RECORDS" in command("show", "their-own", **variables).stdout
    done = command("check", "--json", "outside", *here, **variables)
    assert [p["verdict"] for p in json.loads(done.stdout)["patches"]] == ["applicable"], done.stderr
    done = command("export", "outside", *here, "--output", str(tmp_path / "series"), **variables)
    assert done.returncode == 0, done.stderr
    names = (tmp_path / "series" / "series").read_text().split()
    assert names == [f"{len(SERIES) + 1:04}-their-own.patch"]
    done = command("apply", "their-own", *here, **variables)
    assert done.returncode == 0, done.stderr
    after = (fork.root / PATH).read_text()
    assert after == TEXT.replace("x + 1", "x + 2").replace(
        "        return 2", "        self.there = None\n        return 2"
    )
    done = command("check", "--json", "outside", *here, **variables)
    assert [p["verdict"] for p in json.loads(done.stdout)["patches"]] == ["upstreamed"], done.stderr


SHOW = """
import megatron_patch
from megatron.core.thing import Thing
print(Thing().one(1))
print(*(f"{s.id} {s.state}" for s in megatron_patch.status()[-1:]))
"""


def test_a_process_runs_it(file, fork):
    variables = {"MEGATRON_PATCH_RECORDS": str(file)}
    done = python("-c", SHOW, path=fork.root, **variables)
    assert done.stdout.splitlines() == ["3", "their-own applied"], done.stderr
    variables["MEGATRON_PATCH"] = "-outside"
    done = python("-c", SHOW, path=fork.root, **variables)
    assert done.stdout.splitlines() == ["2", "their-own disabled"], done.stderr


@pytest.mark.parametrize("with_helper", [False, True])
def test_so_does_a_process_of_run_where_this_package_has_another_name(
    file, fork, tmp_path, with_helper
):
    if with_helper:  # a module that does not know in which way it is imported
        (fork.root / "helper_of_records.py").write_text("from megatron_patch.edits import Before\n")
        file.write_text(
            RECORD.replace("from megatron_patch.edits import Before\n", "").replace(
                "import hunks\n", "import hunks\nfrom helper_of_records import Before\n"
            )
        )
    script = tmp_path / "serve.py"
    script.write_text("from megatron.core.thing import Thing\nprint(Thing().one(1))\n")
    # In another directory than that which the path is relative to.
    code = f"""
import os, sys
from megatron_patch.cli import main
os.chdir({str(file.parent)!r})
env = "import os; os.chdir('/'); import runpy; runpy.run_path({str(script)!r})"
sys.exit(main(["run", "--strict", "--", sys.executable, "-c", env]))
"""
    (tmp_path / "start.py").write_text(code)
    done = python(
        "-c",
        f"import os, runpy; os.chdir({str(file.parent)!r}); runpy.run_path('start.py')",
        path=fork.root,
        MEGATRON_PATCH_RECORDS="records.py",
        MEGATRON_PATCH="outside",
    )
    assert done.stdout.splitlines() == ["3"], done.stderr


def test_without_the_variable_nothing_of_it_is_imported():
    code = "import megatron_patch, sys; print('megatron_patch.outside' in sys.modules)"
    assert python("-c", code).stdout.split() == ["False"]
    assert python("-c", code, MEGATRON_PATCH_RECORDS="").stdout.split() == ["False"]


FAULTS = [
    ("their-own", "input-position-view-cache", "give it another id"),
    ("their-own", "upstream", "give it another id"),
    ("their-own", "Their Own", "expected an id of small letters"),
    ("Kind.CORRECTNESS", "'correctness'", "expected a megatron_patch.model.Kind"),
    (DIGEST, DIGEST[:-1], "expected 16 hexadecimal digits"),
    ('Source("the fork", (', 'Source("has it", (("m:f", "' + "0" * 16 + '"),', "told_by"),
    ('Source("the fork", (', 'Source("a fork", (', "has no variant 'a fork'"),
    (f'((ONE, "{DIGEST}"),)', "()", "known without a digest of"),
    ("2026-11-26", "today", "today"),
    ("PATCHES = (PATCH,)", "PATCHES = [PATCH]", "expected a tuple of megatron_patch.model.Patch"),
    ("PATCHES = (PATCH,)", "", "expected a tuple of megatron_patch.model.Patch"),
    ("PATCHES = (PATCH,)", "PATCHES = (PATCH, PATCH)", "give it another id"),
    ("PATCHES = (PATCH,)", "PATCHES = (PATCH._replace(sources=()),)", "it has no sources"),
    ("PATCHES = (PATCH,)", "PATCHES = (PATCH._replace(sources=None),)", "it has no sources"),
    ("PATCHES = (PATCH,)", "PATCHES = (PATCH._replace(variants=()),)", "it has no variants"),
    ("PATCHES = (PATCH,)", "PATCHES = (PATCH._replace(target='m.f'),)", "Class.method"),
    ("PATCHES = (PATCH,)", "raise OSError('on fire')", "OSError: on fire; correct the file"),
    ("    self.there = None", "    'only a docstring'", "IndexError"),
    ("from typing import Any", "import nothing_of_this_name", "ModuleNotFoundError"),
]


@pytest.mark.parametrize(("old", "new", "says"), FAULTS)
def test_a_fault_is_an_error_that_names_the_file_and_the_next_step(file, old, new, says):
    assert old in RECORD
    file.write_text(RECORD.replace(old, new))
    with pytest.raises(SettingsError) as caught:
        records(file)
    assert str(caught.value).startswith(f"MEGATRON_PATCH_RECORDS: {file}")
    assert says in str(caught.value)


def test_a_fault_of_the_code_says_its_line(file):
    file.write_text("\n\ndef broken(:\n")
    with pytest.raises(SettingsError, match=r"records\.py, line 3: SyntaxError"):
        records(file)
    file.write_text("\n1 / 0\n")
    with pytest.raises(SettingsError, match=r"records\.py, line 2: ZeroDivisionError"):
        records(file)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.py: cannot be read: No such file"):
        records(tmp_path / "nowhere.py")


def test_hunks_that_are_not_there(file):
    file.with_suffix(".diff").unlink()
    with pytest.raises(SettingsError, match=r"records\.py, line 10: .*records\.diff"):
        records(file)


def test_the_import_fails_with_it_and_can_be_done_again(file, fork):
    code = f"""
import os
os.environ["MEGATRON_PATCH_RECORDS"] = "nowhere.py"
try:
    import megatron_patch
except ValueError as error:
    print(type(error).__name__)
os.environ["MEGATRON_PATCH_RECORDS"] = {str(file)!r}
{SHOW}
"""
    done = python("-c", code, path=fork.root)
    assert done.stdout.splitlines() == ["SettingsError", "3", "their-own applied"], done.stderr


def test_the_command_says_it_in_a_line():
    script = Path(os.path.realpath(Path(PACKAGE_PARENT, "megatron_patch"))).with_name(
        "megatron_patch_command.py"
    )
    done = python(str(script), "list", MEGATRON_PATCH_RECORDS="/nowhere.py")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("megatron-patch: MEGATRON_PATCH_RECORDS: /nowhere.py: cannot be read")
