"""``megatron-patch run`` notices Python processes that the patches do not reach."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_patch import notes, watching
from megatron_patch.watching import MARK, Watch

from .trees import PACKAGE_PARENT, command, environment

pytestmark = pytest.mark.skipif(not watching.can_watch(), reason="there is no /proc")

#: What can be seen of PyTorch from outside: a file of this name is mapped. Ends when it is told to.
PYTORCH = """
import mmap, os, sys
with open(os.path.join(sys.argv[1], "libtorch_python.so"), "w+b") as file:
    file.truncate(mmap.PAGESIZE)
    kept = mmap.mmap(file.fileno(), 0)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def script(tmp_path):  # type: ignore[no-untyped-def]
    """A script that has PyTorch, and then waits for the end of its stdin."""
    file = tmp_path / "serve.py"
    file.write_text(PYTORCH)
    return file


def started(*arguments: str, **settings: str | None):  # type: ignore[no-untyped-def]
    """A Python process that runs the script, and has loaded the stand-in for PyTorch."""
    variables = {k: v for k, v in {**os.environ, **settings}.items() if v is not None}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def watch(monkeypatch):  # type: ignore[no-untyped-def]
    """Watches this process; the messages are in the list ``said``."""
    said: list[str] = []
    made = Watch(os.getpid(), "the-mark", said.append)
    made.look()
    # Processes that other tests have left running do not count.
    made._settled.update(made._suspects)
    made._suspects.clear()
    made.said = said  # type: ignore[attr-defined]
    return made


def test_a_process_without_a_note_is_told_of_when_it_has_had_time_to_import_us(
    watch, script, monkeypatch
):
    with started("-I", str(script), str(script.parent)) as process:
        watch.look()
        assert (watch.said, watch.found) == ([], 0)
        monkeypatch.setattr(watching, "GRACE", 0.0)
        watch.look()
        (line,) = watch.said
        assert line.startswith(f"process {process.pid} ({sys.executable} -I {script}"[:80])
        assert " ran PyTorch without the patches: " in line
        watch.look()
        process.communicate()
    watch.look(is_last=True)
    assert (len(watch.said), watch.found) == (1, 1)


def test_one_that_has_ended_meanwhile_is_told_of(watch, script):
    with started("-I", str(script), str(script.parent)) as process:
        watch.look()
        process.communicate()
    watch.look()
    assert watch.found == 1


def test_processes_that_are_alike_are_one_line(watch, script):
    arguments = ("-I", str(script), str(script.parent))
    with started(*arguments) as one, started(*arguments) as other:
        watch.look()
        watch.look(is_last=True)
        one.communicate()
        other.communicate()
    (line,) = watch.said
    first, second = sorted([one.pid, other.pid])
    assert line.startswith(f"processes {first}, {second} (")
    assert watch.found == 2


@pytest.mark.parametrize(
    ("options", "settings", "why"),
    [
        ([], {"PYTHONPATH": None}, "its environment has no PYTHONPATH"),
        ([], {"PYTHONPATH": "/x:/y"}, f"its PYTHONPATH is without {notes.DIRECTORY}"),
        (["-I"], {"PYTHONPATH": notes.DIRECTORY}, "it was started with -E, -I or -S, or another"),
    ],
    ids=["none", "another", "isolated"],
)
def test_the_reason(watch, script, options, settings, why):
    with started(*options, str(script), str(script.parent), **settings) as process:
        watch.look(is_last=True)
        process.communicate()
    assert f": {why}" in watch.said[0]


@pytest.mark.parametrize(
    ("before", "settings"),
    [
        ("", {"PYTHONPATH": notes.DIRECTORY}),
        ("import megatron_patch", {"PYTHONPATH": PACKAGE_PARENT}),
        ("", {"PYTHONPATH": None, "MEGATRON_PATCH": "none"}),
    ],
    ids=["reached", "imports us", "on purpose"],
)
def test_who_is_patched_or_is_not_to_be_is_not_told_of(watch, script, before, settings):
    script.write_text(f"{before}\n{PYTORCH}")
    with started(str(script), str(script.parent), **settings) as process:
        watch.look(is_last=True)
        process.communicate()
    assert (watch.said, watch.found) == ([], 0)


def test_who_imports_us_after_pytorch_has_time_for_it(watch, script):
    late = f"{PYTORCH.replace('sys.stdin.read()', 'sys.stdin.readline()')}import megatron_patch\n"
    script.write_text(f"{late}print('ready', flush=True)\nsys.stdin.read()\n")
    with started(str(script), str(script.parent), PYTHONPATH=PACKAGE_PARENT) as process:
        watch.look()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        watch.look()
        process.communicate()
    watch.look(is_last=True)
    assert (watch.said, watch.found) == ([], 0)


def test_a_forked_child_has_the_note_and_an_executed_program_has_not(script):
    fork = "import os\nif os.fork(): os.wait(); os._exit(0)\n"
    script.write_text(f"{fork}{PYTORCH}".replace('"ready"', "os.getpid()"))
    again = "import os, sys; os.execv(sys.executable, [sys.executable, '-I', *sys.argv[1:]])"
    for start, expected in ([], True), (["-c", again], False):
        done = subprocess.Popen(
            [sys.executable, *start, str(script), str(script.parent)],
            env={**os.environ, "PYTHONPATH": notes.DIRECTORY},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with done as process:
            assert notes.has_left(int(process.stdout.readline())) is expected
            process.communicate()


def becomes_another_program(process) -> None:  # type: ignore[no-untyped-def]
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "another\n"


BECOMES_ANOTHER = (
    "sys.stdin.readline(); os.execv('/bin/sh', ['sh', '-c', 'echo another; read line'])"
)


def test_who_becomes_another_program_is_no_suspect_any_more(watch, script):
    script.write_text(PYTORCH.replace("sys.stdin.read()", BECOMES_ANOTHER))
    with started("-I", str(script), str(script.parent)) as process:
        watch.look()
        becomes_another_program(process)
        watch.look()
        process.communicate()
    watch.look(is_last=True)
    assert (watch.said, watch.found) == ([], 0)


def test_a_child_that_is_just_about_to_be_another_program_is_none(watch, script, monkeypatch):
    """It has closed the note of its parent, as `subprocess` does before exec."""
    started_child = "import os\nif os.fork(): os.wait(); os._exit(0)\nos.closerange(3, 100)\n"
    script.write_text(PYTORCH.replace("sys.stdin.read()", BECOMES_ANOTHER))
    script.write_text(started_child + script.read_text())
    settings = {"PYTHONPATH": notes.DIRECTORY}
    with started(str(script), str(script.parent), **settings) as process:
        monkeypatch.setattr(watching.time, "sleep", lambda _: becomes_another_program(process))
        watch.look(is_last=True)
        process.communicate()
    assert (watch.said, watch.found) == ([], 0)


def test_other_processes_are_none_of_our_business(script):
    said: list[str] = []
    with (
        started("-I", str(script), str(script.parent)) as other,
        started("-I", str(script), str(script.parent), **{MARK: "the-mark"}) as marked,
    ):
        subprocess_of_nobody = Watch(2**22 + 1, "the-mark", said.append)
        subprocess_of_nobody.look(is_last=True)
        other.communicate()
        marked.communicate()
    (line,) = said
    assert line.startswith(f"process {marked.pid} (")


def test_a_note_is_never_one_of_the_standard_files():
    code = (
        "import os; os.close(0); os.close(1); os.close(2); import megatron_patch;"
        "os._exit(any(os.path.exists(f'/proc/self/fd/{n}') for n in (0, 1, 2)))"
    )
    for settings in (environment(), {**os.environ, "PYTHONPATH": notes.DIRECTORY}):
        assert subprocess.run([sys.executable, "-c", code], env=settings).returncode == 0


def test_the_looks_become_rare_and_cost_little(watch):
    begin = time.process_time()
    for _ in range(12):
        watch.look()
    assert 0.9 * watching.LAST < watch.next_look - time.monotonic() <= watching.LAST
    assert (time.process_time() - begin) / 12 < watching.LAST / 100


def test_what_goes_wrong_in_a_look_ends_nothing_and_is_said_once(watch, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(os, "listdir", lambda _: 1 / 0)
        watch.look()
        watch.look()
    watch.look(is_last=True)
    (line,) = watch.said
    assert line.startswith("cannot look for processes without the patches: ZeroDivisionError")
    assert watch.is_blind


# What follows is the command as a whole.


def run(script: Path, *start: str, options: tuple[str, ...] = (), **settings: str):  # type: ignore[no-untyped-def]
    """Call ``run`` with a process that ends once it has been looked at."""
    script.write_text(script.read_text().replace("sys.stdin.read()", until_looked_at()))
    return command("run", *options, "--", *start, isolate=False, **settings)


def until_looked_at() -> str:
    """Code that waits longer than the time between two looks, on a slow machine too."""
    return f"import time; time.sleep(2 + 1.5 * (time.time() - {time.time()}))"


def unreached(done) -> list[str]:  # type: ignore[no-untyped-def]
    return re.findall(
        r"^megatron-patch run: process .* without the patches: (.*)$", done.stderr, re.M
    )


WAYS = {
    "PYTHONPATH is set": "export PYTHONPATH=/elsewhere; '{python}' '{script}' '{folder}'",
    "env is empty": "env -i '{python}' '{script}' '{folder}'",
    "isolated": "'{python}' -I '{script}' '{folder}'",
    "its parent has ended": "(PYTHONPATH= exec '{python}' '{script}' '{folder}' >'{folder}/out') & "
    "while [ ! -s '{folder}/out' ]; do sleep 0.1; done; cat '{folder}/out'; sleep 1",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("strict", [False, True])
def test_run_says_that_a_process_ran_unpatched(script, way, strict):
    text = WAYS[way].format(python=sys.executable, script=script, folder=script.parent)
    done = run(script, "sh", "-c", text, options=("--strict",) * strict)
    assert (done.returncode, done.stdout) == (int(strict), "ready\n"), done.stderr
    assert len(unreached(done)) == 1, done.stderr
    forbidden = "megatron-patch run: 1 process ran without the patches, which --strict forbids"
    assert (forbidden in done.stderr.splitlines()) is strict


@pytest.mark.parametrize("strict", [False, True])
def test_run_says_nothing_of_a_process_that_it_reaches(script, strict):
    options = ("--strict",) * strict
    done = run(script, sys.executable, str(script), str(script.parent), options=options)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")


def test_run_with_the_real_pytorch():
    pytest.importorskip("torch")
    code = "import torch, time; time.sleep(1)"
    text = f"'{sys.executable}' -c '{code}' & '{sys.executable}' -I -c '{code}'; wait"
    done = command("run", "--strict", "--", "sh", "-c", text, isolate=False)
    assert (done.returncode, len(unreached(done))) == (1, 1), done.stderr
    assert f"({sys.executable} -I -c {code}) ran PyTorch" in done.stderr


def test_run_without_patches_has_nothing_to_notice(script):
    start = (sys.executable, "-I", str(script), str(script.parent))
    done = run(script, *start, options=("--only", "none"))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_status_of_the_command_itself_stays_what_it_is_in_strict_mode(script):
    text = WAYS["isolated"].format(python=sys.executable, script=script, folder=script.parent)
    done = run(script, "sh", "-c", f"{text}; exit 7", options=("--strict",))
    assert (done.returncode, len(unreached(done))) == (7, 1)


def test_the_installed_command_notices_it_and_enable_ends_it(installation, tmp_path):
    file = tmp_path / "serve.py"
    file.write_text(PYTORCH.replace("sys.stdin.read()", until_looked_at()))
    lost = f"PYTHONPATH=/elsewhere '{installation.python}' '{file}' '{tmp_path}'"
    start = ("run", "--strict", "--", "sh", "-c", lost)
    done = installation.command(*start, PATH=os.environ["PATH"])
    assert (done.returncode, len(unreached(done))) == (1, 1), done.stderr
    assert installation.command("enable").returncode == 0
    try:
        done = installation.command(*start, PATH=os.environ["PATH"])
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        assert installation.command("disable").returncode == 0
