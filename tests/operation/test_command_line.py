"""The command says in clear lines what is wrong, whatever it is given, read by or printed to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_patch
from megatron_patch import tree_record
from megatron_patch.source_tree import SourceTree

from ..unit.trees import write_tree
from .test_command import ID, megatron_patch_command
from .test_source_patches import contents, copy

CONTEXT = """
class DynamicInferenceContext:
    def current_input_and_position_ids(self):
        return None
"""
DRIFTED = f"{ID}: drifted"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A Megatron on which one patch is drifted."""
    write_tree(tmp_path / "fork", CONTEXT, version=(0, 16, 9))
    return tmp_path / "fork"


def context(tree: Path) -> Path:
    return tree / "megatron" / "core" / "inference" / "contexts" / "dynamic_context.py"


def check(tree: Path, *arguments: str, **variables: str):  # type: ignore[no-untyped-def]
    done = megatron_patch_command("check", "--megatron", str(tree), *arguments, **variables)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_the_version_and_where_it_is():
    done = megatron_patch_command("--version")
    assert done.returncode == 0, done.stderr
    name, version, _, place = done.stdout.split()
    assert (name, version) == ("megatron-patch", megatron_patch.__version__)
    assert (Path(place) / "cli.py").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {"MEGATRON_PATCH": "nothing"},
        {"MEGATRON_PATCH_STRICT": "yes"},
        {"MEGATRON_PATCH_ACCEPT": "x"},
        {"MEGATRON_PATCH_RECORDS": "/nonexistent.py"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_help_is_given_whatever_the_settings_and_nothing_else(tree, variables):
    (name,) = variables
    for arguments in (["--help"], ["check", "-h"], ["--version"]):
        done = megatron_patch_command(*arguments, **variables)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert "megatron-patch" in done.stdout
    for arguments in (["check", "--megatron", str(tree)], ["status"], ["list"]):
        done = megatron_patch_command(*arguments, **variables)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr.startswith(f"megatron-patch: {name}")
        assert done.stderr.count("\n") == 1
        module = subprocess.run(
            [sys.executable, "-m", "megatron_patch", *arguments],
            env={**os.environ, "PYTHONPATH": _search(), **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (module.returncode, module.stderr) == (2, done.stderr)


def _search() -> str:
    package = str(Path(megatron_patch.__file__).parents[1])
    return os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))


def test_a_process_that_is_no_command_fails_at_import(tmp_path):
    """The name is also in the arguments of the process."""
    script = tmp_path / "other.py"
    script.write_text("import megatron_patch\n")
    for start in (["-m", "other", "megatron_patch"], ["other.py", "-m", "megatron_patch"]):
        done = subprocess.run(
            [sys.executable, *start],
            env={**os.environ, "PYTHONPATH": _search(), "MEGATRON_PATCH": "nothing"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "SettingsError: MEGATRON_PATCH='nothing'" in done.stderr


def test_check_says_what_will_be_patched(tree):
    assert check(tree).returncode == 3
    off = check(tree, MEGATRON_PATCH=f"-{ID}")
    assert off.returncode == 0
    assert f"{DRIFTED}, but off (not selected by MEGATRON_PATCH)" in off.stdout
    named = check(tree, ID, MEGATRON_PATCH="none")
    assert (named.returncode, DRIFTED + "\n" in named.stdout) == (3, True)
    found = json.loads(check(tree, "--json", MEGATRON_PATCH=ID).stdout)["patches"]
    assert {entry["id"] for entry in found if entry["off"] is None} == {ID}
    assert {entry["off"] for entry in found} == {None, "opt-in", "not selected by MEGATRON_PATCH"}
    last = check(tree, MEGATRON_PATCH=ID).stdout.splitlines()[-1]
    assert last.startswith("0 will be patched, 0 upstreamed, 0 not_applicable, 1 drifted; ")


def test_what_is_opt_in_does_not_count():
    """On the installed Megatron, whatever the verdicts on the opt-in patches are."""
    done = megatron_patch_command("check", "--json")
    off = {entry["id"]: entry["off"] for entry in json.loads(done.stdout)["patches"]}
    assert off["dp-sampling-seed"] == "opt-in"
    assert set(off.values()) == {None, "opt-in"}
    named = megatron_patch_command("check", "--json", "dp-sampling-seed")
    assert [entry["off"] for entry in json.loads(named.stdout)["patches"]] == [None]


@pytest.mark.parametrize("argument", ["-", "--only=-", "-nothing", "nothing"])
@pytest.mark.parametrize("command", ["check", "export", "apply", "run", "status"])
def test_no_name_is_passed_over(tree, tmp_path, command, argument):
    needs = {
        "check": ["--megatron", str(tree)],
        "apply": ["--megatron", str(tree), "--dry-run"],
        "export": ["--megatron", str(tree), "--output", str(tmp_path / "series")],
        "run": ["--", sys.executable, "-c", "print('started')"],
        "status": [],
    }
    if (command, argument) == ("run", "nothing"):
        argument = "--only=nothing"
    done = megatron_patch_command(command, argument, *needs[command])
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert f"unknown name {argument.removeprefix('--only=')!r}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "selected"),
    [
        ([f"--only={ID}"], ID),
        (["--only", f"-{ID}"], f"-{ID}"),
        ([f"-{ID}"], f"-{ID}"),
        (["correctness", f"-{ID}"], f"correctness,-{ID}"),
        ([], None),
    ],
)
def test_run_takes_the_same_ids(arguments, selected):
    show = "import os; print(os.environ.get('MEGATRON_PATCH'))"
    environment = {"MEGATRON_PATCH": "all"} if selected is None else {}
    done = megatron_patch_command(
        "run", *arguments, "--", sys.executable, "-c", show, **environment
    )
    assert done.stdout == f"{selected or 'all'}\n", done.stderr
    # A command that has `--` among its own arguments.
    done = megatron_patch_command("run", sys.executable, "-c", "print('x')", "--", "-y")
    assert (done.stdout, done.stderr) == ("x\n", "")


def test_some_patches_of_the_release_are_taken_back(tmp_path):
    trees = [copy(tmp_path / name) for name in ("some", "others")]
    before = contents(trees[0])
    some, others = (["--megatron", str(tree)] for tree in trees)
    assert megatron_patch_command("apply", *some).returncode == 0
    assert megatron_patch_command("apply", *others, "-ours").returncode == 0
    done = megatron_patch_command("revert", *some, "ours")
    assert done.returncode == 0, done.stderr
    found, expected = contents(trees[0]), contents(trees[1])
    records = [json.loads(files.pop(Path(tree_record.RECORD))) for files in (found, expected)]
    assert records[0] == records[1]
    assert found == expected != before
    assert megatron_patch_command("revert", *some).returncode == 0
    assert contents(trees[0]) == before


def test_ids_after_the_end_of_the_options_are_ids(tree):
    found = json.loads(check(tree, "--json", "--", ID).stdout)["patches"]
    assert [entry["id"] for entry in found] == [ID]


MERGE = "<<<<<<< HEAD\nx = 1\n=======\nx = 2\n>>>>>>> theirs\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            CONTEXT.encode() + MERGE.encode(),
            "a merge that is not finished (megatron.core.inference",
        ),
        (
            b"# coding: rot13\n" + CONTEXT.encode(),
            "dynamic_context.py is not text of its encoding: 'rot13'",
        ),
        (b"# coding: no-such\n" + CONTEXT.encode(), "unknown encoding: no-such"),
        (
            CONTEXT.encode() + b"x = '\xff'\n",
            "dynamic_context.py is not text of its encoding: 'utf-8'",
        ),
        (CONTEXT.encode("utf-16"), "dynamic_context.py"),
        (CONTEXT.encode() + b"x = '\0'\n", "null bytes (megatron.core.inference.contexts"),
    ],
    ids=["merge", "rot13", "unknown", "bytes", "utf-16", "null"],
)
def test_a_file_that_is_no_source(tree, tmp_path, content, says):
    context(tree).write_bytes(content)
    for arguments in ([], ["--diff"], ["--diff", "--against", str(tree)]):
        done = check(tree, ID, *arguments)
        assert done.returncode == 3, done.stderr
        assert says in " ".join(done.stdout.split())
    given = ["--megatron", str(tree), "--allow-drift", ID]
    for command in (["export", "--output", str(tmp_path / "series")], ["apply"]):
        done = megatron_patch_command(*command, *given)
        assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr
        assert says in done.stderr
    assert context(tree).read_bytes() == content


RECORD = """
from megatron_patch.edits import Before
from megatron_patch.model import Kind, Patch, Source, Variant

TARGET = "megatron.core.inference.contexts.dynamic_context:DynamicInferenceContext.reset"


def hook(self):
    self.x = 1


FIELDS = dict(
    id="fork-step", kind=Kind.CORRECTNESS, summary="a", symptom="b", outcome="c", upstream_pr=None,
    upstream_commit=None, upstream_date=None, fixed_in=None, releases=">=0.16,<0.17", removal="d",
    updated="2026-11-26", target=TARGET, variants=(Variant("fork", (Before(TARGET, hook),)),),
    sources=(Source("fork", ((TARGET, "0123456789abcdef"),), "our fork"),),
)
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("PATCHES = (", "line 1: SyntaxError"),
        ("import sys\nsys.exit(3)", "line 2: SystemExit: 3; correct the file"),
        ("class E(Exception):\n    def __str__(self): raise self\nraise E", "line 3: E; correct"),
        (RECORD + "PATCHES = (Patch(**{**FIELDS, 'summary': None}),)", "its summary is None"),
        (RECORD + "PATCHES = (Patch(**{**FIELDS, 'removal': 3}),)", "its removal is 3"),
        (RECORD + "PATCHES = (Patch(**{**FIELDS, 'fixed_in': 3}),)", "its fixed_in is 3"),
        (RECORD + "PATCHES = (Patch(**{**FIELDS, 'upstream_pr': 'x'}),)", "its upstream_pr is 'x'"),
        (RECORD + "PATCHES = (Patch(**{**FIELDS, 'variants': 3}),)", "TypeError"),
    ],
)
def test_a_corrupt_record(tree, tmp_path, text, says):
    file = tmp_path / "records.py"
    file.write_text(text)
    done = check(tree, MEGATRON_PATCH_RECORDS=str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"megatron-patch: MEGATRON_PATCH_RECORDS: {file}")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_record_is_in_order_otherwise(tree, tmp_path):
    file = tmp_path / "records.py"
    file.write_text(RECORD + "PATCHES = (Patch(**FIELDS),)")
    done = megatron_patch_command("show", "fork-step", MEGATRON_PATCH_RECORDS=str(file))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["ascii", "strict", "C"],
)
@pytest.mark.parametrize("name", [b"tr\xff\xed\xb3\xbf", "tré".encode()], ids=["bytes", "accent"])
def test_a_path_that_stdout_cannot_show(tmp_path, name, variables):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    write_tree(root, CONTEXT, version=(0, 16, 9))
    for arguments in (["check", ID], ["check", "--diff", ID], ["apply", "--dry-run"]):
        done = subprocess.run(
            [*_script(), *arguments, "--megatron", str(root)],
            env={**os.environ, "PYTHONPATH": _search(), **variables},
            capture_output=True,
            check=False,
        )
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == 3
        assert b"drifted" in done.stdout + done.stderr
    done = megatron_patch_command("check", "--json", "--megatron", str(root), ID, **variables)
    assert json.loads(done.stdout)["patches"][0]["id"] == ID


def _script() -> list[str]:
    script = Path(sys.executable).with_name("megatron-patch")
    return [str(script)] if script.exists() else [sys.executable, "-m", "megatron_patch"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["list"], ["check", "--json"], ["check"], ["--help"]])
def test_nobody_reads_what_is_printed(arguments, unbuffered):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*_script(), *arguments],
        env={**os.environ, "PYTHONPATH": _search(), "PYTHONUNBUFFERED": unbuffered},
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert done.stderr == b""
    # argparse itself does not mind who reads its help.
    assert done.returncode == 141 or (arguments, unbuffered) == (["--help"], "1")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_cannot_be_written_is_an_error_in_one_line(unbuffered):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*_script(), "list"],
            env={**os.environ, "PYTHONPATH": _search(), "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "megatron-patch: No space left on device\n")


def test_an_output_that_cannot_be_made_is_an_error_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    where = str(SourceTree.installed().root)
    output = str(tmp_path / "file" / "series")
    done = megatron_patch_command("export", "--megatron", where, "--output", output)
    assert done.returncode == 1
    assert done.stderr == f"megatron-patch: {output}: Not a directory\n"
