"""The command of ``run`` is as it is without us: status, signals, terminal, files and processes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from megatron_patch import watching

from .trees import PACKAGE_PARENT, command, environment

pytestmark = pytest.mark.skipif(not watching.can_watch(), reason="there is no /proc")

BOTH = pytest.mark.parametrize("options", [[], ["--strict"]], ids=["become", "supervise"])


def run_line(options, *start: str) -> list[str]:  # type: ignore[no-untyped-def]
    return [sys.executable, "-m", "megatron_patch", "run", *options, "--", *start]


@pytest.fixture
def process(options) -> Iterator[subprocess.Popen[str]]:  # type: ignore[no-untyped-def]
    """``run`` with a Python that executes the lines that it reads from a pipe."""
    code = "import os, sys, signal, time\nprint(os.getpid(), flush=True)\nfor line in iter(sys.stdin.readline, ''): exec(line)"  # fmt: skip # noqa: E501
    with subprocess.Popen(
        run_line(options, sys.executable, "-c", code),
        cwd=PACKAGE_PARENT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as made:
        try:
            yield made
        finally:
            made.kill()


def ask(process, line: str) -> str:  # type: ignore[no-untyped-def]
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return str(process.stdout.readline())


@BOTH
@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_the_exit_status(options, status):
    done = command("run", *options, "--", "sh", "-c", f"exit {status}", isolate=False)
    assert (done.returncode, done.stderr) == (status, "")


@pytest.fixture
def heeds_interrupts():
    """What a shell starts in the background ignores SIGINT, and hands that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@BOTH
@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGINT", "SIGABRT", "SIGSEGV", "SIGPIPE"])
def test_a_command_that_ends_by_a_signal(options, name):
    done = command("run", *options, "--", "sh", "-c", f"kill -{name[3:]} $$", isolate=False)
    assert (done.returncode, done.stderr) == (-signal.Signals[name], "")


@BOTH
def test_a_command_that_cannot_be_executed(options, tmp_path):
    plain, broken = tmp_path / "plain", tmp_path / "broken"
    plain.touch()
    broken.write_bytes(b"\0not a program")
    broken.chmod(0o755)

    def run(name, path=os.environ["PATH"]):  # type: ignore[no-untyped-def]
        done = command("run", *options, "--", str(name), isolate=False, PATH=path)
        assert done.stderr.startswith(f"megatron-patch run: {name}: ")
        return done.returncode, done.stderr.rpartition(": ")[2].strip()

    assert run(plain) == (126, "Permission denied")
    assert run(tmp_path) == (126, "Is a directory")
    assert run(broken) == (126, "Exec format error")
    assert run("plain", f"{tmp_path}:{os.environ['PATH']}") == (126, "Permission denied")
    assert run(tmp_path / "nothing") == (127, "command not found")
    assert run("no-such-command") == (127, "command not found")
    assert run(tmp_path.name, str(tmp_path.parent)) == (127, "command not found")  # a directory


@BOTH
def test_a_signal_from_another_process_arrives_once(process):
    process.stdout.readline()
    # Not print(), in the middle of which the signal may arrive.
    write = "__import__('os').write(1, b'got\\n')"
    handler = f"signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2), {write}))"
    assert ask(process, f"{handler}; print('set', flush=True)") == "set\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "got\n"
    time.sleep(0.3)
    assert ask(process, "print('only', flush=True)") == "only\n"
    process.stdin.close()
    assert process.wait(30) == 0


@BOTH
def test_a_signal_that_ends_the_command(process):
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM


@BOTH
def test_when_run_is_killed_the_command_is(process):
    process.stdout.readline()
    process.kill()
    process.wait(30)
    readable, _, _ = select.select([process.stdout], [], [], 30)
    assert readable
    assert process.stdout.read() == ""  # no process that could write to it is left


@BOTH
def test_a_stop_of_the_command_is_one_of_run(process):
    process.stdout.readline()
    process.stdin.write("os.kill(os.getpid(), signal.SIGSTOP); print('again', flush=True)\n")
    process.stdin.flush()
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    assert process.stdout.readline() == "again\n"


@BOTH
def test_the_command_has_no_children_and_files_that_it_did_not_open(options):
    code = (
        "import json, os, signal\n"
        "files = {n: os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')}\n"
        "try: children = os.waitpid(-1, os.WNOHANG)\n"
        "except ChildProcessError: children = None\n"
        "ignored = [l for l in open('/proc/self/status') if l.startswith(('SigIgn', 'SigBlk'))]\n"
        "print(json.dumps([sorted(files), children, ignored, os.getsid(0), os.getpgid(0)]))\n"
    )
    start = [sys.executable, "-S", "-c", code]  # such a process leaves no note that it is patched

    def shown(line: list[str]) -> object:
        done = subprocess.run(
            line, cwd=PACKAGE_PARENT, env=environment(), stdout=subprocess.PIPE, check=True
        )
        return json.loads(done.stdout)

    assert shown(run_line(options, *start)) == shown(start)


def test_without_strict_the_command_is_the_very_process():
    with subprocess.Popen(
        run_line([], "sh", "-c", "echo $$"),
        cwd=PACKAGE_PARENT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.communicate()[0] == f"{process.pid}\n"


# A shell with job control, of one job: says when it stops, and goes on with it.
SHELL = """
import os, signal, sys
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        os.write(1, b"ended %d;" % os.waitstatus_to_exitcode(status))
        break
    os.write(1, b"stopped;")
    os.killpg(job, signal.SIGCONT)
"""
# Not with print(), which a second signal would find half-way. And not with a plain read of stdin: a
# signal just before the read, as while the process is stopped there, does not interrupt it, and
# then Python calls the handler when the read is done. The other end of a pipe is told at once.
JOB = """
import os, select, signal, time
def interrupted(*_):
    time.sleep(0.2)
    os.write(1, b"interrupted;")
signal.signal(signal.SIGINT, interrupted)
signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"continued;"))
told, end = os.pipe()
os.set_blocking(end, False)
signal.set_wakeup_fd(end)
os.write(1, b"started;")
while 0 not in select.select([0, told], [], [])[0]:
    os.read(told, 100)
os.write(1, b"read %s;" % os.read(0, 100).strip())
"""


@BOTH
def test_the_keys_of_a_terminal(options):
    """Stop, continue, interrupt and a line of input, as a shell with job control gives them."""
    line = [sys.executable, "-c", SHELL, *run_line(options, sys.executable, "-c", JOB)]
    number, terminal = pty.fork()
    if number == 0:
        os.chdir(PACKAGE_PARENT)
        os.execve(sys.executable, line, environment())
    seen = ""

    def wait_for(words: str) -> None:
        nonlocal seen
        end = time.monotonic() + 60
        while words not in seen:
            assert select.select([terminal], [], [], end - time.monotonic())[0], seen
            seen += os.read(terminal, 1000).decode()

    try:
        wait_for("started;")
        os.write(terminal, b"\x1a")
        wait_for("stopped;")
        wait_for("continued;")
        os.write(terminal, b"\x03")
        wait_for("interrupted;")
        time.sleep(0.3)
        os.write(terminal, b"a line\n")
        wait_for("ended 0;")
    finally:
        os.close(terminal)
        os.waitpid(number, 0)
    assert "read a line;" in seen
    assert (seen.count("stopped;"), seen.count("interrupted;")) == (1, 1), seen
