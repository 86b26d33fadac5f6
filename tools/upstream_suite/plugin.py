"""The pytest plugin that runs in each rank: stand-ins, time limits, and a record of each result.

A test that outlasts its limit is interrupted. One that cannot be, because it waits in C for a GPU
or for another rank, ends its process a little later, with the stacks of all threads in the log. So
does a test that fails and leaves the GPU unusable, because all tests after it would fail too.

The record is one file of JSON lines for each rank, written as it happens, so that it is there
whatever becomes of the process. Ranks wait for each other after each test: a rank that is late does
not meet the next test of another.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import inspect
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

SETTINGS = "UPSTREAM_SUITE"
"""The environment variable with the file of :class:`Settings`."""
LONGEST_MESSAGE = 4000


@dataclass(frozen=True)
class Settings:
    """What the tool tells each rank."""

    folder: str
    """Where the records of this attempt go."""
    limit: float
    """Seconds of one test, its fixtures included."""
    grace: float
    """Seconds after the limit in which a test has to give way."""
    done: list[str] = field(default_factory=list)
    """Tests that are not to be run, because an earlier attempt has."""

    def dump(self) -> str:
        """Write them; returns the path of the file."""
        path = Path(self.folder) / "settings.json"
        path.write_text(json.dumps(asdict(self)))
        return str(path)

    @classmethod
    def load(cls) -> Settings:
        return cls(**json.loads(Path(os.environ[SETTINGS]).read_text()))


class OverLimit(BaseException):
    """A test outlasted its limit. Not an `Exception`: tests and Megatron catch those."""


def pytest_configure(config: pytest.Config) -> None:
    stack = ExitStack()
    config.add_cleanup(stack.close)
    config.pluginmanager.register(Rank(Settings.load(), config.rootpath, stack), "upstream-rank")


class Rank:
    """One process of the ranks that run a test session together."""

    def __init__(self, settings: Settings, root: Path, stack: ExitStack) -> None:
        self.settings = settings
        self.rank = int(os.environ["RANK"])
        self.ranks = int(os.environ["WORLD_SIZE"])
        self.folder = Path(settings.folder)
        self.ended = 0
        self.outcome = "passed"
        self.message = ""
        self.kind = ""
        self.deadline = 0.0
        self.states: dict[str, str] = {}
        self.record = stack.enter_context((self.folder / f"rank-{self.rank}.jsonl").open("a"))
        self.write("started")
        # A made-up Megatron of a test of this tool has none, and needs no stand-ins.
        if (root / "megatron/core/utils.py").is_file():
            import megatron_patch  # noqa: F401  # patches Megatron as it is imported

            from .hardware import stand_in

            self.write("stood in for", names=stand_in(stack))

    def write(self, event: str, **values: Any) -> None:
        self.record.write(json.dumps({"event": event, **values}) + "\n")
        self.record.flush()

    # Collection

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            kind = report.longreprtext.strip().rpartition("\n")[2]
            self.write("broken", test=report.nodeid, message=_short(report.longreprtext), kind=kind)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[Any]) -> None:
        self.write("collected", tests=[item.nodeid for item in items])
        done = frozenset(self.settings.done)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
        items[:] = [item for item in items if item.nodeid not in done]

    def pytest_collection_finish(self) -> None:
        """Make the default process group if an earlier attempt, in other processes, had one.

        Some tests skip without it, and rely on earlier tests to make it.
        """
        utilities: Any = sys.modules.get("tests.unit_tests.test_utilities")
        if self.settings.done and utilities is not None:
            _arm(self.settings.limit + self.settings.grace)
            utilities.Utils.initialize_distributed()
            utilities.Utils.inited = False
            faulthandler.cancel_dump_traceback_later()

    # One test

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        settings = self.settings
        self.outcome, self.message, self.kind = "skipped", "", ""
        self.write("start", test=item.nodeid, time=time.time())
        begin = time.monotonic()
        self.deadline = begin + settings.limit
        _arm(settings.limit + settings.grace)
        result = yield
        failed = self.outcome in ("failed", "timeout")
        lost = _lost_device() if failed else None
        if lost is not None:
            self.outcome, self.message = "crashed", f"{lost}\n{self.message}"
        self.write(
            "end",
            test=item.nodeid,
            outcome=self.outcome,
            seconds=round(time.monotonic() - begin, 3),
            message=_short(self.message),
            kind=self.kind,
        )
        if lost is not None:
            os._exit(70)
        self.write_states()
        faulthandler.cancel_dump_traceback_later()
        if self.meet(failed):
            self.start_afresh(item)
        return result

    def meet(self, failed: bool) -> bool:
        """Wait until all ranks have ended as many tests; returns whether the last one failed."""
        with (self.folder / f"rank-{self.rank}.ended").open("a") as file:
            file.write("01"[failed])
        flags = ""
        for other in range(self.ranks):
            path = self.folder / f"rank-{other}.ended"
            while not path.exists() or len(ended := path.read_text()) <= self.ended:
                time.sleep(0.005)
            flags += ended[self.ended]
        self.ended += 1
        return "1" in flags

    def start_afresh(self, item: pytest.Item) -> None:
        """After a failed test, undo what it left, and the fixtures of its class and module too.

        Otherwise later tests would find no process groups, for example: a test that wants more
        ranks than there are destroys those of its class before it fails.
        """
        settings = self.settings
        _arm(settings.limit + settings.grace)
        try:
            item.session._setupstate.teardown_exact(None)
        except Exception:
            traceback.print_exc()
        _forget_failure()
        faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None, Any, Any]:
        with self.limited():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, Any, Any]:
        with self.limited():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Generator[None, Any, Any]:
        # A test that was interrupted is cleaned up after, in the time that is left to it.
        with self.limited(self.settings.grace / 2):
            return (yield)

    @contextmanager
    def limited(self, more: float = 0.0) -> Iterator[None]:
        """Interrupt the block at the limit of the test; only in here, not within pytest itself."""

        def interrupt(*_: Any) -> None:
            raise OverLimit(f"over the limit of {self.settings.limit:g} s")

        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, max(0.01, self.deadline + more - time.monotonic()))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        expected_to_fail = hasattr(report, "wasxfail")
        if report.failed and self.outcome not in ("failed", "timeout"):
            over = call.excinfo is not None and call.excinfo.errisinstance(OverLimit)
            self.outcome = "timeout" if over else "failed"
            self.message = f"{report.when}: {report.longreprtext}"
            self.kind = call.excinfo.typename if call.excinfo is not None else ""
        elif report.skipped and expected_to_fail:
            self.outcome = "xfailed"
        elif report.skipped:
            self.message = report.longreprtext
        elif report.passed and report.when == "call":
            self.outcome = "xpassed" if expected_to_fail else "passed"
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: Any) -> bool | None:
        """Run a coroutine; pytest itself has no way to."""
        if not inspect.iscoroutinefunction(pyfuncitem.obj):
            return None
        names = pyfuncitem._fixtureinfo.argnames
        asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
        return True

    # The end

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.write_states()
        self.write("finished", status=int(exitstatus))

    def write_states(self) -> None:
        """Write the states of the patches, if they have changed."""
        package: Any = sys.modules.get("megatron_patch")
        states = {} if package is None else {p.id: str(p.state) for p in package.status()}
        if states != self.states:
            self.states = states
            self.write("states", states=states)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        # Process groups are left as they are: to destroy them NCCL would wait for CUDA graphs.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


# What tests find in upstream's own conftest.py.


@pytest.fixture(autouse=True)
def experimental() -> None:
    """Experimental features are off when a test starts."""
    config: Any = sys.modules.get("megatron.core.config")
    if config is not None:
        config.ENABLE_EXPERIMENTAL = False


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Environment variables that a test sets are not those of the next."""
    before = dict(os.environ)
    os.environ.update(NVTE_FLASH_ATTN="0", NVTE_FUSED_ATTN="0")
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tmp_path_dist_ckpt() -> Path:
    """A folder that all ranks share."""
    folder = Path(Settings.load().folder) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def _arm(seconds: float) -> None:
    """End the process after ``seconds``, and print the stacks of all threads."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)


def _lost_device() -> str | None:
    """What CUDA says when nothing runs on the device any more; `None` as long as it works."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


def _forget_failure() -> None:
    """Free what the traceback of a failed test keeps: engines and their memory."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _short(text: str) -> str:
    """The end of `text`, which says most."""
    return text[-LONGEST_MESSAGE:]
