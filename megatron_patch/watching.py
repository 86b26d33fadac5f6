"""Notice the Python processes of a command that the patches do not reach.

No code of ours runs in such a process: ``PYTHONPATH`` was set anew, or the environment emptied,
or Python started with ``-E``, ``-I`` or ``-S``. So it is looked for in Linux's ``/proc``: a process
that the command started, that has loaded PyTorch into Python, and has no note of ours (`notes`).

What cannot be seen: Megatron itself, which leaves no trace there (so each process with PyTorch
counts, unless it has ``MEGATRON_PATCH=none``); a process that ends between two looks, which are
four a second at first and one in ten seconds after half a minute; one whose environment was emptied
and whose parent ended before a look; other users' processes; and other machines. One look takes
40 µs for each process of the machine.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from . import notes
from .settings import SELECTION

#: The variable that tells the processes of one ``run``, where their parent has ended.
MARK = "MEGATRON_PATCH_RUN"
#: Seconds between two looks, which become longer by a factor: about a third of the time gone by.
FIRST, FACTOR, LAST = 0.25, 1.4, 10.0
#: Seconds that a child of a patched process has no note, at most: it closes all files and then
#: executes another program.
MOMENT = 0.05
#: Seconds for a process with PyTorch to import ``megatron_patch`` by itself.
GRACE = 10.0

_PYTORCH = b"/libtorch_python.so"


class Process(NamedTuple):
    """A process, and not another one that gets its number later."""

    number: int
    started: int  # in clock ticks since the start of the machine


class Suspect(NamedTuple):
    """A process that has PyTorch, and had no note when it was last looked at."""

    since: float
    words: str


class Watch:
    """Looks at what process ``root`` and those that it has started do.

    ``mark`` is the value of ``MARK`` in the environment of ``root``. ``say`` gets a line for each
    kind of process that runs unpatched.
    """

    def __init__(self, root: int, mark: str, say: Callable[[str], None]) -> None:
        self.found = 0  #: how many processes have run unpatched
        self.is_blind = False  #: whether a look went wrong
        self._root = root
        self._mark = f"{MARK}={mark}".encode()
        self._say = say
        self._members: set[Process] = set()
        self._strangers: set[Process] = set()
        self._settled: set[Process] = set()
        self._told: set[str] = set()
        self._suspects: dict[Process, Suspect] = {}
        self._pause = FIRST
        self.next_look = time.monotonic() + FIRST

    def look(self, *, is_last: bool = False) -> None:
        """Look once, and say what is certain. At the end of the command, all suspects are.

        Raises nothing: what goes wrong must not end the command, is said, and sets ``is_blind``.
        """
        now = time.monotonic()
        self._pause = min(FACTOR * self._pause, LAST)
        self.next_look = now + self._pause
        try:
            self._look(now, is_last)
        except Exception as error:
            if not self.is_blind:
                self._say(f"cannot look for processes without the patches: {error!r}")
            self.is_blind = True

    def _look(self, now: float, is_last: bool) -> None:
        parents = dict(_processes())
        self._find_members(parents)
        self._find_suspects(parents, now)
        certain: dict[str, list[int]] = {}
        for process, suspect in list(self._suspects.items()):
            if is_last or process not in parents or now - suspect.since >= GRACE:
                certain.setdefault(suspect.words, []).append(process.number)
                del self._suspects[process]
                self._settled.add(process)
        for words, numbers in certain.items():
            self.found += len(numbers)
            several = "es" * (len(numbers) > 1)
            if words in self._told:
                continue
            self._told.add(words)
            self._say(f"process{several} {', '.join(map(str, sorted(numbers)))} {words}")
        self._settled.intersection_update(parents)

    def _find_members(self, parents: dict[Process, int]) -> None:
        by_number = {process.number: process for process in parents}
        self._members.intersection_update(parents)
        self._strangers.intersection_update(parents)
        for process in parents:
            line: list[Process] = []  # from it up to one that is known, or to the first of all
            above: Process | None = process
            while above and above not in self._members and above not in line:
                line.append(above)
                if above.number == self._root or self._has_mark(above):
                    break
                above = by_number.get(parents[above])
            else:
                if above is None or above in line:
                    continue
            self._members.update(line)

    def _has_mark(self, process: Process) -> bool:
        """Whether its environment is one of the command, which need not be asked twice."""
        if process in self._strangers:
            return False
        environment = _read(process.number, "environ")
        is_ours = self._mark in environment.split(b"\0")
        if environment and not is_ours:
            self._strangers.add(process)
        return is_ours

    def _find_suspects(self, parents: Mapping[Process, int], now: float) -> None:
        unreached = set(filter(self._is_unreached, self._members - self._settled))
        if unreached - self._suspects.keys():
            time.sleep(MOMENT)
            unreached = set(filter(self._is_unreached, unreached))
        for process in [one for one in self._suspects if one in parents and one not in unreached]:
            del self._suspects[process]  # it has imported us, or is another program now
        for process in unreached - self._suspects.keys():
            self._suspects[process] = Suspect(now, _described(process.number))

    def _is_unreached(self, process: Process) -> bool:
        """Whether it has PyTorch, and neither a note nor the wish to be without the patches.

        One that has just ended is what it was.
        """
        try:
            with open(f"/proc/{process.number}/maps", "rb") as opened:
                maps = opened.readlines()
            if maps and not any(_PYTORCH in line for line in maps):
                return False
            has_left = notes.has_left(process.number)
        except OSError:
            maps = []
        if not maps:
            return process in self._suspects
        environment = _read(process.number, "environ").split(b"\0")
        if has_left or f"{SELECTION}=none".encode() in environment:
            self._settled.add(process)
            return False
        return True


def can_watch() -> bool:
    """Whether this system has what it takes."""
    return os.path.exists("/proc/self/stat") and os.path.exists("/proc/self/fd")


def _processes() -> Iterator[tuple[Process, int]]:
    """All processes that run, each with the number of its parent."""
    for name in os.listdir("/proc"):
        text = _read(int(name), "stat") if name.isdigit() else b""
        fields = text.rpartition(b")")[2].split()  # behind the name, which may be anything
        if len(fields) > 19 and fields[0] != b"Z":  # one that has ended, and was not waited for
            yield Process(int(name), int(fields[19])), int(fields[1])


def _read(number: int, name: str) -> bytes:
    """What a file of a process says; nothing when it is gone, or somebody else's."""
    try:
        with open(f"/proc/{number}/{name}", "rb") as opened:
            return opened.read()
    except OSError:
        return b""


def _described(number: int) -> str:
    """What a process is, and why the patches are not in it."""
    arguments = _read(number, "cmdline").rstrip(b"\0").split(b"\0")
    command = " ".join(os.fsdecode(argument) for argument in arguments)
    command = " ".join(re.sub(r"[^ -~]", "?", command).split())
    environment = _read(number, "environ").split(b"\0")
    path = next(
        (v[len("PYTHONPATH=") :] for v in environment if v.startswith(b"PYTHONPATH=")), None
    )
    if path is None:
        why = "its environment has no PYTHONPATH"
    elif os.fsencode(notes.DIRECTORY) not in path.split(os.pathsep.encode()):
        why = f"its PYTHONPATH is without {notes.DIRECTORY}"
    else:
        why = "it was started with -E, -I or -S, or another sitecustomize comes before ours"
    shown = command if len(command) <= 100 else f"{command[:97]}..."
    return f"({shown}) ran PyTorch without the patches: {why}"
