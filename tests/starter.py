"""Processes that begin with PyTorch imported, and Megatron and us not: forks of one of them.

Importing PyTorch takes longer than what most tests then do in a process of their own. For Megatron
and for us a fork is as fresh as a new interpreter, and it ends like one.

``python -m tests.starter`` reads pickled requests from standard input and writes pickled replies to
standard output, until its input ends. See :mod:`.lifecycle.zygote` for another one, of test cases.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
#: What each release of Megatron-Core imports of PyTorch when it is imported.
MODULES = ("torch", "torch._dynamo")


def run(
    code: str,
    *arguments: str,
    path: tuple[Path, ...] = (),
    **variables: str | None,
) -> subprocess.CompletedProcess[str]:
    """What ``python -c code`` does in the root of the tests, with ``path`` first on its path.

    Its environment is that of this process with ``variables``, less those that are ``None``.
    """
    environment = {k: v for k, v in {**os.environ, **variables}.items() if v is not None}
    request = {
        "arguments": ["-c", *arguments],
        "code": code,
        "environment": environment,
        "path": [str(place) for place in path],
    }
    starter = _starter()
    assert starter.stdin is not None
    assert starter.stdout is not None
    pickle.dump(request, starter.stdin)
    starter.stdin.flush()
    status, out, error = pickle.load(starter.stdout)
    return subprocess.CompletedProcess(request["arguments"], status, out, error)


@functools.cache
def _starter() -> subprocess.Popen[bytes]:
    threads = {"OMP_NUM_THREADS": "1"}  # a process with threads should not fork
    starter = subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=ROOT,
        env={**os.environ, **threads},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(starter.communicate)  # ends its input, and waits
    return starter


def _next_to_run() -> dict[str, Any] | None:
    """Start a process for each request. Returns in each what it is to run, and at last ``None``."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed here must not get between the replies
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # none of it is searched for garbage in the children
    while True:
        try:
            request: dict[str, Any] = pickle.load(requests)
        except EOFError:
            return None
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
            pid = os.fork()
            if pid == 0:
                for source, number in (
                    (os.open(os.devnull, os.O_RDONLY), 0),
                    (out.fileno(), 1),
                    (error.fileno(), 2),
                ):
                    os.dup2(source, number)
                replies.close()
                return request
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            texts = []
            for file in (out, error):
                file.seek(0)
                texts.append(file.read().decode())
        pickle.dump((status, *texts), replies)
        replies.flush()


def _run(request: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    sys.path[1:1] = request["path"]  # the first is the working directory
    main = sys.modules["__main__"] = ModuleType("__main__")
    exec(compile(request["code"], "<string>", "exec"), vars(main))


if __name__ == "__main__":
    requested = _next_to_run()
    if requested is not None:
        _run(requested)
