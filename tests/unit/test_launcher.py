"""``megatron-patch run`` and the ``sitecustomize`` that it puts on the path."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest

from megatron_patch import launcher

from .trees import IMPORT_ALL, command, environment, write_tree

SHOW = (
    f"{IMPORT_ALL}; import sys, json; package = sys.modules.get('megatron_patch');"
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
    quiet = "import json, sys; print('megatron_patch' in sys.modules)"
    assert run(tree, sys.executable, "-c", quiet).stdout == "False\n"


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
    """The variable turns bad after the launch: the launcher itself refuses a bad one."""
    code = f"import os; os.environ['MEGATRON_PATCH'] = 'typo'; {SHOW}"
    done = run(tree, sys.executable, "-c", code)
    assert (done.returncode, json.loads(done.stdout)) == (0, None)
    (line,) = done.stderr.splitlines()
    assert line.startswith("megatron_patch: not active in process ")
    assert "SettingsError: MEGATRON_PATCH='typo': unknown name 'typo'" in line
    strict = run(tree, sys.executable, "-c", code, options=("--strict",))
    assert strict.returncode == 1
    assert "SettingsError" in strict.stderr.splitlines()[-1]


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
