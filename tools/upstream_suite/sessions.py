"""Sessions of pytest in one or more ranks, which may hang or die, watched from outside."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .outcomes import Result, worst
from .plugin import SETTINGS, Settings

REPOSITORY = Path(__file__).resolve().parents[2]
DEATHS_PER_FILE = 2
"""Then the rest of a test file is left out."""
SAVED_EACH = 15.0
"""Seconds."""


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    test: float = 60.0
    grace: float = 10.0
    """After the limit of a test, until its process ends."""
    start: float = 180.0
    """From the start of the processes to the first test: imports, and collection."""
    session: float = 3600.0


@dataclass
class Rank:
    """One process, and what it has written."""

    process: subprocess.Popen[bytes]
    record: Path
    read: int = 0
    """How many bytes of the record have been read."""
    running: str | None = None
    last: str | None = None
    """The test that started last."""
    started: float = 0.0
    """When that was, in seconds of the clock."""
    finished: bool = False


@dataclass
class Session:
    """The tests of one tree in `ranks` processes, started again after a test that ended one."""

    name: str
    tree: Path
    """Made by `layout.build`."""
    tests: Sequence[str]
    folder: Path
    """For records and logs."""
    ranks: int = 1
    limits: Limits = field(default_factory=Limits)
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the environment, beside those of this process."""

    collected: dict[str, None] = field(default_factory=dict)
    stood_in: list[str] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    """Of the patches, at the end of the last test."""
    notes: list[str] = field(default_factory=list)
    """What went wrong beside tests that fail."""

    def __post_init__(self) -> None:
        self._by_rank: dict[str, dict[int, Result]] = {}
        self._deaths: Counter[str] = Counter()
        self._live: list[Rank] = []
        self._log: IO[bytes] | None = None
        self._attempt = 0
        self._began = 0.0
        self._progress = 0.0
        self.seconds = 0.0
        self.ended = False

    @property
    def results(self) -> dict[str, Result]:
        """By test, of all ranks together; in the order of the tests."""
        order = {**self.collected, **dict.fromkeys(self._by_rank)}
        return {t: worst(self._by_rank[t].values()) for t in order if t in self._by_rank}

    def start(self) -> None:
        """Start the first attempt."""
        self._began = time.monotonic()
        self._launch()

    def poll(self) -> bool:
        """Take in what has happened; returns whether the session has ended. Never waits."""
        if self.ended:
            return True
        self._take_in()
        now = time.monotonic()
        if now - self._began > self.limits.session:
            self.stop(f"stopped at the limit of {self.limits.session:g} s for a session")
        elif all(rank.finished for rank in self._live):
            self._end_attempt()
            self.ended = True
        elif any(rank.process.poll() is not None and not rank.finished for rank in self._live):
            self._after_death("ended")
        elif now - self._progress > self._patience():
            self._after_death("does not answer")
        self.seconds = now - self._began
        return self.ended

    def stop(self, why: str) -> None:
        """End the session with the results that there are."""
        if not self.ended:
            self._take_in()
            self.notes.append(why)
            self._end_attempt()
            self.ended = True

    # Attempts

    def _launch(self) -> None:
        self._attempt += 1
        folder = self.folder / f"attempt-{self._attempt}"
        folder.mkdir(parents=True)
        done = [*self._by_rank, *(t for t in self.collected if self._given_up(t))]
        settings = Settings(str(folder), self.limits.test, self.limits.grace, done).dump()
        port = _free_port()
        self._log = open(folder / "log.txt", "wb")  # noqa: SIM115  # closed in _end_attempt()
        self._live = []
        for rank in range(self.ranks):
            process = subprocess.Popen(
                self._command(),
                cwd=self.tree,
                env=self._environment(settings, rank, port),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                # Tests start processes too: a group of its own, to be ended together.
                start_new_session=True,
            )
            self._live.append(Rank(process, folder / f"rank-{rank}.jsonl"))
        self._progress = time.monotonic()

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "pytest", "-c", "pytest.ini", "--rootdir", "."),
            *("-p", f"{__package__}.plugin", "-p", "no:cacheprovider", "-p", "no:faulthandler"),
            *(("-p", "pytest_mock") if _has_mock() else ()),
            *("-v", "--tb=short", "--disable-warnings", "--capture=no", "--import-mode=prepend"),
            *("--continue-on-collection-errors", *self.tests),
        ]

    def _environment(self, settings: str, rank: int, port: int) -> dict[str, str]:
        path = [str(self.tree), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONPYCACHEPREFIX": str(self.folder / "pycache"),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "NCCL_MAX_NCHANNELS": "1",
            "NCCL_NVLS_ENABLE": "0",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_WORLD_SIZE": str(self.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            SETTINGS: settings,
            **self.variables,
        }

    def _patience(self) -> float:
        """Seconds without a new line from a rank after which it counts as hung."""
        if any(rank.last is None for rank in self._live):
            return self.limits.start
        return self.limits.test + 2 * self.limits.grace

    def _after_death(self, how: str) -> None:
        """Say what became of the test that ended a rank, and go on with the next one."""
        dead = [rank for rank in self._live if rank.process.poll() is not None]
        self._end_attempt()
        self._take_in()
        culprits = self._culprits(dead, how)
        for test in culprits:
            self._deaths[_file(test)] += 1
        if not culprits:
            self.notes.append(f"a process {how} before its first test: see {self._log_path()}")
            self.ended = True
        elif all(t in self._by_rank or self._given_up(t) for t in self.collected):
            self.ended = True
        else:
            self._launch()

    def _culprits(self, dead: Sequence[Rank], how: str) -> list[str]:
        """File the results of the tests that the ranks died of."""
        now = time.time()
        culprits: dict[str, None] = {}
        for number, rank in enumerate(self._live):
            if rank.finished or rank.last is None or (rank.running is None and rank not in dead):
                continue
            known = self._by_rank.get(rank.last, {}).get(number)
            if known is not None and known.outcome == "crashed":
                culprits[rank.last] = None
                continue
            seconds = round(now - rank.started, 3)
            late = rank.running is not None and seconds >= self.limits.test
            if not late and rank not in dead:
                continue  # it waited for the one that died
            result = Result(
                "timeout" if late else "crashed",
                "" if late else f"exit status {rank.process.returncode}",
                f"the process {how}: see {self._log_path()}",
                seconds,
                number,
            )
            self._by_rank.setdefault(rank.last, {})[number] = result
            culprits[rank.last] = None
        return list(culprits)

    def _end_attempt(self) -> None:
        for rank in self._live:
            # The group is there as long as anything that the tests started is.
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(rank.process.pid, number)
                except ProcessLookupError:
                    break
        for rank in self._live:
            rank.process.wait()
        if self._log is not None:
            self._log.close()

    def _given_up(self, test: str) -> bool:
        return self._deaths[_file(test)] >= DEATHS_PER_FILE

    def _log_path(self) -> Path:
        return self.folder / f"attempt-{self._attempt}" / "log.txt"

    # Records

    def _take_in(self) -> None:
        for number, rank in enumerate(self._live):
            for event in _new_lines(rank):
                self._progress = time.monotonic()
                self._file_event(number, rank, event)

    def _file_event(self, number: int, rank: Rank, event: dict[str, Any]) -> None:
        name = event.pop("event")
        if name == "start":
            rank.running = rank.last = event["test"]
            rank.started = event["time"]
        elif name in ("end", "broken"):
            rank.running = None
            test = event.pop("test")
            result = Result(**{"outcome": "failed", "rank": number, **event})
            self._by_rank.setdefault(test, {})[number] = result
        elif name == "collected":
            self.collected.update(dict.fromkeys(event["tests"]))
        elif name == "stood in for":
            self.stood_in = event["names"]
        elif name == "states":
            self.states = event["states"]
        elif name == "finished":
            rank.finished = True
            if event["status"] not in (0, 1, 5):
                self.notes.append(f"pytest ended with {event['status']}: see {self._log_path()}")


def run(sessions: Iterable[Session], at_once: int, save: Callable[[], object]) -> None:
    """Run the sessions, `at_once` at a time. Whatever ends this ends their processes.

    `save` is called now and then, so that results are kept if this process is killed.
    """
    waiting = list(sessions)
    running: list[Session] = []
    saved = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(waiting.pop(0))
                running[-1].start()
            running = [session for session in running if not session.poll()]
            if time.monotonic() - saved > SAVED_EACH:
                save()
                saved = time.monotonic()
            time.sleep(0.1)
    finally:
        for session in running:
            session.stop("stopped before its end")


def _file(test: str) -> str:
    return test.partition("::")[0]


def _new_lines(rank: Rank) -> list[dict[str, Any]]:
    """The complete lines that the rank has written since the last call."""
    if not rank.record.exists():
        return []
    with rank.record.open("rb") as file:
        file.seek(rank.read)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    rank.read += len(whole)
    return [json.loads(line) for line in whole.splitlines()]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _has_mock() -> bool:
    from importlib.util import find_spec

    return find_spec("pytest_mock") is not None
