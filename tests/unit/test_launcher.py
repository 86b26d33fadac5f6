"""``megatron-patch run`` and the ``sitecustomize`` that it puts on the path."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import megatron_patch
from megatron_patch import launcher
from megatron_patch.running import NAME

from .test_running import APPLIED, START, variables
from .trees import IMPORT_ALL, command, environment, write_tree

__all__ = ["variables"]

SHOW = (
    f"{IMPORT_ALL}; import sys, json; package = sys.modules.get('{NAME}');"
    "print(json.dumps(package and sorted({str(s.state) for s in package.status()})))"
)


@pytest.fixture
def tree(tmp_path):  # type: ignore[no-untyped-def]
    """A Megatron that has nothing to patch."""
    write_tree(tmp_path, "class DynamicInferenceContext:\n    pass\n")
    return tmp_path


def run(tree, *argv, options=(), **variables):  # type: ignore[no-untyped-def]
    return command("run", *options, "--", *argv, path=tree, isolate=False, **variables)


def test_the_package_is_imported_just_before_megatron_and_not_otherwise(tree):
    done = run(tree, sys.executable, "-c", SHOW)
    assert json.loads(done.stdout) == ["disabled", "not_applicable"], done.stderr
    quiet = "import sys; print({'megatron_patch', '_megatron_patch'} & set(sys.modules))"
    assert run(tree, sys.executable, "-c", quiet).stdout == "set()\n"


def test_it_reaches_every_process_below(tree):
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SHOW!r}], check=True)"
    done = run(tree, "sh", "-c", 'exec "$0" -c "$1"', sys.executable, code)
    assert json.loads(done.stdout) == ["disabled", "not_applicable"], done.stderr


def test_the_package_need_not_be_on_the_path_of_the_command(tree):
    variables = environment(PYTHONPATH=str(tree))
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        env=launcher.environment_for(variables),
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout) == ["disabled", "not_applicable"], done.stderr


def launched(code, variables, *path, **options):  # type: ignore[no-untyped-def]
    """What a script shows, with the tree and ``path`` on its path, and what is on stderr."""
    settings = {k: v for k, v in variables.items() if k != "path"}
    search = os.pathsep.join(map(str, [*path, variables["path"]]))
    done = subprocess.run(
        [sys.executable, "-c", START + code],
        env=launcher.environment_for({**os.environ, **settings, "PYTHONPATH": search}, **options),
        cwd=variables["path"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


OURS = Path(megatron_patch.__file__).parents[1]


@pytest.mark.parametrize("first", ["us", "megatron"])
@pytest.mark.parametrize("path", [[], [OURS]], ids=["not on the path", "on the path"])
def test_who_imports_us_gets_the_engine_that_runs(variables, first, path):
    imports = ["import megatron_patch", IMPORT_ALL][:: 1 if first == "us" else -1]
    code = f"""
{"; ".join(imports)}
import {NAME}
from megatron_patch import errors, settings
assert megatron_patch is {NAME}
assert errors.SettingsError is megatron_patch.SettingsError
show(megatron_patch)
importlib.reload(megatron_patch)
show(megatron_patch)
megatron_patch.uninstall()
megatron_patch.install()
show({NAME})
"""
    assert launched(code, variables, *path, strict=True) == (0, [APPLIED] * 3, "")


@pytest.fixture
def theirs(tmp_path):  # type: ignore[no-untyped-def]
    """The directory of a Pai-Megatron-Patch, which has the same import name."""
    package = tmp_path / "pai" / "megatron_patch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("WHOSE = 'theirs'\n")
    (package / "tokenizer.py").write_text("from . import WHOSE\n")
    return tmp_path / "pai"


THEIRS = (
    "from megatron_patch.tokenizer import WHOSE; import megatron_patch; print(json.dumps(WHOSE))"
)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("where", ["before ours", "alone", "added by the script"])
@pytest.mark.parametrize("first", ["theirs", "megatron"])
def test_a_package_of_the_same_name_and_ours_both_work(variables, theirs, first, where, strict):
    path = {"before ours": [theirs, OURS], "alone": [theirs], "added by the script": [OURS]}[where]
    add = f"sys.path.insert(0, {str(theirs)!r})" if where == "added by the script" else ""
    order = [f"{add}\n{THEIRS}", IMPORT_ALL][:: 1 if first == "theirs" else -1]
    code = "\n".join(
        [*order, f"import {NAME}", f"show({NAME})", "importlib.reload(megatron_patch)"]
    )
    assert launched(code, variables, *path, strict=strict) == (0, ["theirs", APPLIED], "")


def test_strict_means_that_megatron_is_not_imported_without_us(variables, theirs):
    """Whoever has the name, and however often it is tried."""
    code = f"""
import os
{THEIRS}
os.environ["MEGATRON_PATCH"] = "typo"
for attempt in range(2):
    try:
        import megatron.core
    except ValueError as error:
        print(json.dumps([type(error).__name__, "megatron.core" in sys.modules]))
"""
    expected = ["theirs", *[["SettingsError", False]] * 2]
    assert launched(code, variables, theirs, strict=True) == (0, expected, "")


def test_the_command_where_a_package_of_the_same_name_comes_first(tree, theirs):
    done = subprocess.run(
        [sys.executable, "-m", "megatron_patch_command", "run", "--", sys.executable, "-c", SHOW],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [theirs, tree, OURS]))},
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == ["disabled", "not_applicable"]


def test_threads_import_us_and_megatron_at_once(variables):
    code = f"""
import threading
sys.setswitchinterval(1e-5)
barrier = threading.Barrier(8)

def work(statement):
    barrier.wait()
    exec(statement, {{}})

statements = ["import megatron_patch", {IMPORT_ALL!r}] * 4
threads = [threading.Thread(target=work, args=[statement]) for statement in statements]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
import megatron_patch, {NAME}
assert megatron_patch is {NAME}
show(megatron_patch)
"""
    for _ in range(2):
        assert launched(code, variables, OURS, strict=True) == (0, [APPLIED], "")


def test_options_set_the_variables(tree):
    code = "import os; print(os.environ.get('MEGATRON_PATCH'), os.environ['MEGATRON_PATCH_STRICT'])"
    options = ("--strict", "--only", "performance", "--only", "correctness")
    done = run(tree, sys.executable, "-c", code, options=options)
    assert done.stdout == "performance,correctness 1\n"
    assert run(tree, sys.executable, "-c", code, MEGATRON_PATCH_STRICT="0").stdout == "None 0\n"
    done = run(tree, sys.executable, "-c", SHOW, options=("--only", "none"))
    assert json.loads(done.stdout) == ["disabled"]


def test_an_existing_sitecustomize_still_runs_once(tree):
    (tree / "sitecustomize.py").write_text("import builtins\nbuiltins.LOG = [__name__]\n")
    code = "import sys; print(LOG, sys.modules['sitecustomize'].__file__)"
    done = run(tree, sys.executable, "-c", code)
    assert done.stdout == f"['sitecustomize'] {tree / 'sitecustomize.py'}\n", done.stderr


def test_an_existing_sitecustomize_that_raises_breaks_nothing(tree):
    (tree / "sitecustomize.py").write_text("raise OSError('broken before')\n")
    done = run(tree, sys.executable, "-c", SHOW)
    assert json.loads(done.stdout) == ["disabled", "not_applicable"]
    assert "broken before" in done.stderr


def test_an_error_of_ours_is_one_line_unless_strict(tree):
    """The variable is made invalid after the launch: the launcher refuses an invalid one."""
    code = f"import os; os.environ['MEGATRON_PATCH'] = 'typo'; {SHOW}"
    done = run(tree, sys.executable, "-c", code)
    assert (done.returncode, json.loads(done.stdout)) == (0, None)
    (line,) = done.stderr.splitlines()
    assert line.startswith("megatron_patch: not active in process ")
    assert "SettingsError: MEGATRON_PATCH='typo': unknown name 'typo'" in line
    strict = run(tree, sys.executable, "-c", code, options=("--strict",))
    assert strict.returncode == 1
    assert "SettingsError" in strict.stderr.splitlines()[-1]


@pytest.mark.parametrize("close", ["sys.stderr = None", "sys.stderr.close()", "os.close(2)"])
def test_an_error_of_ours_where_there_is_no_stderr(tree, close):
    code = f"import os, sys; os.environ['MEGATRON_PATCH'] = 'typo'; {close}; {SHOW}"
    done = run(tree, sys.executable, "-c", code)
    assert (done.returncode, json.loads(done.stdout)) == (0, None)


@pytest.mark.parametrize("how", ["launched", "imported"])
def test_warnings_that_are_errors_end_nothing(variables, how):
    drifted = {**variables, "MEGATRON_PATCH_ACCEPT": ""}
    first = f"import {NAME}" if how == "launched" else "import megatron_patch"
    code = f"{first}\n{IMPORT_ALL}\nimport {NAME}\nshow({NAME})\n"
    status, shown, said = launched(code, drifted, *[OURS] * (how == "imported"))
    assert (status, shown) == (0, [["drifted", False, True]])
    (line,) = said.splitlines()
    assert line.startswith("megatron_patch: input-position-view-cache is drifted: unknown source")


def test_a_stale_digest_is_told_of_and_ends_nothing_unless_strict(variables):
    stale = {**variables, "MEGATRON_PATCH_ACCEPT": "input-position-view-cache@0123456789abcdef"}
    code = f"warnings.simplefilter('always')\n{IMPORT_ALL}\nimport {NAME}\nshow({NAME})\n"
    status, shown, said = launched(code, stale)
    assert (status, shown) == (0, [["failed", False, True]])
    assert "@0123456789abcdef is not the source of any target" in said
    status, shown, said = launched(code, stale, strict=True)
    assert (status, shown) == (1, [])
    assert said.splitlines()[-1].startswith(f"{NAME}.errors.StrictModeError: input-position-view")


@pytest.mark.parametrize("status", [0, 3])
def test_the_exit_status_is_the_commands(tree, status):
    assert run(tree, sys.executable, "-c", f"raise SystemExit({status})").returncode == status


def test_signals_reach_the_command(tree):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    assert run(tree, sys.executable, "-c", code).returncode == -signal.SIGTERM


def test_a_command_that_cannot_be_started(tree):
    done = run(tree, "no-such-command")
    assert (done.returncode, done.stderr) == (
        127,
        "megatron-patch run: no-such-command: command not found\n",
    )
    broken = tree / "broken"
    broken.write_bytes(b"\0not a program")
    broken.chmod(0o755)
    done = run(tree, str(broken))
    assert done.returncode == 126
    assert f"{broken}: Exec format error" in done.stderr


def test_a_process_without_megatron_pays_less_than_ten_milliseconds():
    plain = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COVERAGE_RUN")}

    def fastest(variables) -> float:  # type: ignore[no-untyped-def]
        times = []
        for _ in range(15):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-S", "-c", "import site; site.main()"], env=variables)
            times.append(time.perf_counter() - begin)
        return min(times) * 0.5 + statistics.median(times) * 0.5

    cost = min(fastest(launcher.environment_for(plain)) - fastest(plain) for _ in range(3))
    assert cost < 0.010
