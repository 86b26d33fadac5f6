"""A process that forks a fresh one for each case, with torch imported and Megatron not.

What a case's targets import of other packages is imported here, once. A forked child is then as
fresh as a new interpreter for Megatron and for us, and costs a tenth.

``python -m tests.lifecycle.zygote`` reads pickled requests from standard input and writes pickled
replies to standard output, until its input ends. See :mod:`.fresh` for the other side.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch  # noqa: F401

from .fresh import SKIPPED

PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.005
GRACE_SECONDS = 2.0  # helpers of multiprocessing end by themselves, soon after their parent


def main() -> None:
    # What a case leaves running becomes a child of this process, which can then end it.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    faulthandler.enable()
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed here must not get between the replies
    preloaded: set[tuple[str, ...]] = set()
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        reply = ("", "")
        if request["modules"] not in preloaded:
            preloaded.add(request["modules"])
            reply = _preload(request["modules"], request["timeout"])
        if not reply[0]:
            reply = run(lambda request=request: _case(**request), request["timeout"])
        pickle.dump(reply, replies)
        replies.flush()


def _case(module: str, cls: str, method: str, arguments: dict[str, Any], **_: Any) -> None:
    instance = getattr(importlib.import_module(module), cls)()
    instance.begin()
    getattr(instance, method).__wrapped__(instance, **arguments)


def _preload(modules: tuple[str, ...], timeout: float) -> tuple[str, str]:
    """Import what ``modules`` import of other packages; a child finds out what that is."""
    ours = {name.partition(".")[0] for name in modules}
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory) / "modules"

        def scout() -> None:
            before = set(sys.modules)
            for name in modules:
                importlib.import_module(name)
            new = [name for name in sys.modules if name not in before]
            found.write_text("\n".join(n for n in new if n.partition(".")[0] not in ours))

        problem, output = run(scout, timeout)
        if not problem:
            for name in found.read_text().split():
                importlib.import_module(name)
    return problem and f"importing {', '.join(modules)}: {problem}", output


def run(function: Callable[[], object], timeout: float) -> tuple[str, str]:
    """Run ``function`` in a child. Returns what went wrong, if anything, and what it printed."""
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            _child(function, output.fileno())
        problem = _wait(pid, timeout)
        left = _end_orphans(0 if problem else GRACE_SECONDS)
        if left and not problem:
            problem = f"left processes behind: {left}"
        output.seek(0)
        return problem, output.read().decode(errors="replace")


def _child(function: Callable[[], object], output: int) -> NoReturn:
    status = 1
    try:
        os.setsid()
        for source, number in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
            os.dup2(source, number)
        function()
        status = 0
    except pytest.skip.Exception as skipped:
        print(skipped)
        status = SKIPPED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(pid: int, timeout: float) -> str:
    deadline, parent = time.monotonic() + timeout, os.getppid()
    problem = ""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return problem or (f"exit status {os.waitstatus_to_exitcode(status)}" if status else "")
        if not problem and (time.monotonic() > deadline or os.getppid() != parent):
            problem = f"not ended after {timeout:g} s"
            os.kill(pid, signal.SIGABRT)  # faulthandler prints where it hangs
        elif time.monotonic() > deadline + GRACE_SECONDS:
            os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _end_orphans(grace: float) -> list[str]:
    """Wait for what the child started; kill what has not ended then, and tell what it was."""
    deadline = time.monotonic() + grace
    killed: dict[int, str] = {}
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return list(killed.values())
        if time.monotonic() > deadline:
            for pid in map(int, Path("/proc/thread-self/children").read_text().split()):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                killed.setdefault(pid, command.decode(errors="replace"))
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
