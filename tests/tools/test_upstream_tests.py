"""The two runs of upstream's tests, and their comparison, on small made-up checkouts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from megatron_patch.testing.version import core_version
from tools import upstream_tests
from tools.upstream_suite import layout, outcomes, sessions
from tools.upstream_suite.intended import INTENDED, Intended
from tools.upstream_suite.outcomes import Result
from tools.upstream_suite.sessions import Limits, Session

REPOSITORY = upstream_tests.REPOSITORY
A = "tests/unit_tests/inference/test_a.py"
B = "tests/unit_tests/inference/test_b.py"
PACKAGE_INFO = "MAJOR = 0\nMINOR = 18\nPATCH = 2\nPRE_RELEASE = ''\n"

#: These tests take minutes, and the checkouts that they make up have no Megatron in them.
pytestmark = pytest.mark.skipif(core_version() != "0.16.1", reason="the same on each release")


@dataclass
class Checkout:
    """A made-up checkout of Megatron-LM."""

    root: Path
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.write("megatron/core/__init__.py", "")
        self.write("megatron/core/package_info.py", PACKAGE_INFO)
        self.write("tests/unit_tests/__init__.py", "")

    def write(self, path: str, text: str) -> None:
        self.files[path] = textwrap.dedent(text)
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(self.files[path])

    def unchanged(self) -> bool:
        found = {p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file()}
        return found == set(self.files) and all(
            (self.root / path).read_text() == text for path, text in self.files.items()
        )


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path / "Megatron-LM")


@pytest.fixture
def run(checkout, tmp_path):
    """Runs the tests of the checkout in one session, and returns it."""

    def run_session(*tests, ranks=1, limits=None, **variables):
        tree = layout.build(tmp_path / "tree", checkout.root)
        session = Session(
            "session",
            tree.root,
            tests or ("tests/unit_tests/inference",),
            tmp_path / "records",
            ranks,
            limits or Limits(test=30, grace=5, start=200, session=250),
            variables,
        )
        sessions.run([session], 1, lambda: None)
        assert checkout.unchanged()
        return session

    return run_session


def outcomes_of(session):
    return {test: result.outcome for test, result in session.results.items()}


def test_each_outcome_is_recorded_with_its_reason(checkout, run):
    checkout.write(
        A,
        """
        import asyncio
        import os

        import pytest

        class TestOutcomes:
            @pytest.mark.internal
            @pytest.mark.parametrize("number", [1, 2])
            def test_passes(self, number):
                os.environ["LEFT_BEHIND"] = "1"

            def test_fails(self):
                assert "LEFT_BEHIND" not in os.environ
                raise KeyError("reason of the failure")

            @pytest.mark.skip(reason="not here")
            def test_skipped(self):
                pass

            @pytest.mark.xfail
            def test_expected_to_fail(self):
                raise ValueError

            @pytest.mark.asyncio
            async def test_coroutine(self, tmp_path):
                await asyncio.sleep(0)
                assert tmp_path.is_dir()

            @pytest.mark.asyncio
            async def test_coroutine_that_fails(self):
                await asyncio.sleep(0)
                raise OSError

            def test_mocked(self, mocker):
                mocker.patch("os.getcwd", return_value="elsewhere")
                assert os.getcwd() == "elsewhere"

        @pytest.fixture
        def broken():
            raise LookupError

        def test_setup(broken):
            pass
        """,
    )
    checkout.write(B, "import module_that_is_not_there\n")
    session = run()
    assert outcomes_of(session) == {
        f"{A}::TestOutcomes::test_passes[1]": "passed",
        f"{A}::TestOutcomes::test_passes[2]": "passed",
        f"{A}::TestOutcomes::test_fails": "failed",
        f"{A}::TestOutcomes::test_skipped": "skipped",
        f"{A}::TestOutcomes::test_expected_to_fail": "xfailed",
        f"{A}::TestOutcomes::test_coroutine": "passed",
        f"{A}::TestOutcomes::test_coroutine_that_fails": "failed",
        f"{A}::TestOutcomes::test_mocked": "passed",
        f"{A}::test_setup": "failed",
        B: "failed",
    }
    failed = session.results[f"{A}::TestOutcomes::test_fails"]
    assert failed.kind == "KeyError"
    assert "reason of the failure" in failed.message
    assert session.results[f"{A}::TestOutcomes::test_coroutine_that_fails"].kind == "OSError"
    assert "module_that_is_not_there" in session.results[B].kind
    assert outcomes.summary(session.results, session.collected) == (
        "4 passed, 4 failed, 1 xfailed, 1 skipped"
    )
    assert session.notes == []


def test_conftest_of_upstream_is_left_out_and_those_below_are_not(checkout, run):
    checkout.write("tests/unit_tests/conftest.py", "raise RuntimeError('downloads')\n")
    checkout.write(
        "tests/unit_tests/inference/conftest.py",
        """
        import pytest

        @pytest.fixture
        def value():
            return 3
        """,
    )
    checkout.write("tests/unit_tests/helper.py", "VALUE = 3\n")
    checkout.write("examples/example.py", "VALUE = 3\n")
    checkout.write(
        A,
        """
        from examples import example
        from tests.unit_tests import helper

        def test_all_is_found(value, tmp_path_dist_ckpt):
            assert value == helper.VALUE == example.VALUE
            assert tmp_path_dist_ckpt.is_dir()
        """,
    )
    assert outcomes_of(run()) == {f"{A}::test_all_is_found": "passed"}


def test_test_over_its_limit_is_interrupted_and_the_session_goes_on(checkout, run):
    checkout.write(
        A,
        """
        import asyncio
        import time

        def test_hangs():
            try:
                time.sleep(60)
            except Exception:
                time.sleep(60)

        async def test_waits():
            await asyncio.Event().wait()

        def test_passes():
            pass
        """,
    )
    session = run(limits=Limits(test=1, grace=20, start=200, session=250))
    assert outcomes_of(session) == {
        f"{A}::test_hangs": "timeout",
        f"{A}::test_waits": "timeout",
        f"{A}::test_passes": "passed",
    }
    assert all(result.seconds < 10 for result in session.results.values())


def test_process_that_cannot_be_interrupted_is_ended_and_started_again(checkout, run):
    checkout.write(
        A,
        """
        import os
        import signal

        def test_before():
            pass

        def test_deaf():
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            while True:
                pass

        def test_between():
            pass

        def test_dies():
            os._exit(3)

        def test_given_up():
            pass
        """,
    )
    checkout.write(B, "def test_of_the_next_file():\n    pass\n")
    session = run(limits=Limits(test=1, grace=4, start=200, session=250))
    assert outcomes_of(session) == {
        f"{A}::test_before": "passed",
        f"{A}::test_deaf": "timeout",
        f"{A}::test_between": "passed",
        f"{A}::test_dies": "crashed",
        f"{B}::test_of_the_next_file": "passed",
    }
    assert session.results[f"{A}::test_dies"].kind == "exit status 3"
    assert "1 not run" in outcomes.summary(session.results, session.collected)
    # The stacks are where the message says.
    log = session.results[f"{A}::test_deaf"].message.partition(": see ")[2]
    assert "in test_deaf" in Path(log).read_text()


def test_process_group_is_there_again_after_a_death(checkout, run):
    checkout.write(
        "tests/unit_tests/test_utilities.py",
        """
        class Utils:
            initialized = inited = False

            @classmethod
            def initialize_distributed(cls):
                cls.initialized = cls.inited = True
        """,
    )
    checkout.write(
        A,
        """
        import os

        from tests.unit_tests.test_utilities import Utils

        def test_dies():
            assert not Utils.initialized
            Utils.initialize_distributed()
            os._exit(3)

        def test_needs_it():
            assert Utils.initialized
            assert not Utils.inited
        """,
    )
    assert outcomes_of(run()) == {f"{A}::test_dies": "crashed", f"{A}::test_needs_it": "passed"}


def test_death_between_tests_counts_for_the_test_before(checkout, run):
    checkout.write(
        A,
        """
        import os
        import threading
        import time

        def test_kills_later():
            threading.Timer(0.3, os._exit, [0]).start()

        def test_other():
            time.sleep(1)
        """,
    )
    checkout.write(
        B,
        """
        import os

        import pytest

        @pytest.fixture(scope="session")
        def resource():
            yield
            os._exit(1)

        def test_with_resource(resource):
            pass
        """,
    )
    assert outcomes_of(run()) == {
        f"{A}::test_kills_later": "passed",
        f"{A}::test_other": "crashed",
        f"{B}::test_with_resource": "crashed",
    }


def test_session_that_cannot_start_says_so(checkout, run):
    checkout.write(A, "import os\nos._exit(5)\n")
    session = run()
    assert outcomes_of(session) == {}
    assert "before its first test" in session.notes[0]


def test_session_has_a_limit(checkout, run):
    checkout.write(
        A,
        """
        import time

        def test_first():
            pass

        def test_slow():
            time.sleep(60)
        """,
    )
    session = run(limits=Limits(test=60, grace=5, start=60, session=8))
    assert f"{A}::test_slow" not in session.results
    assert session.notes == ["stopped at the limit of 8 s for a session"]


def test_nothing_that_a_test_started_is_left(checkout, run, tmp_path):
    checkout.write(
        A,
        f"""
        import os
        import subprocess
        import sys

        def test_starts_a_process():
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
            os._exit(1)
        """,
    )
    run()
    pid = int((tmp_path / "pid").read_text())
    state = Path(f"/proc/{pid}/stat")
    # An orphan may be left as a zombie, if no process waits for it.
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


RANKS = """
import os
import time

RANK = int(os.environ["RANK"])


class TestRanks:
    def setup_class(cls):
        cls.state = "made"

    def test_variables(self):
        assert os.environ["WORLD_SIZE"] == "2"
        assert os.environ["LOCAL_RANK"] == os.environ["RANK"]
        assert os.environ["MASTER_ADDR"] and int(os.environ["MASTER_PORT"])

    def test_fails_on_one(self):
        TestRanks.state = "broken"
        assert RANK == 0

    def test_state_is_made_afresh(self):
        assert self.state == "made"

    def test_hangs_on_one(self):
        if RANK == 1:
            signal = __import__("signal")
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            time.sleep(600)

    def test_dies_on_one(self):
        if RANK == 0:
            os._exit(9)
        time.sleep(600)


def test_left_out():
    pass
"""


def test_test_passes_if_it_does_on_all_ranks(checkout, run):
    checkout.write(A, RANKS)
    session = run(ranks=2, limits=Limits(test=3, grace=1, start=200, session=250))
    assert outcomes_of(session) == {
        f"{A}::TestRanks::test_variables": "passed",
        f"{A}::TestRanks::test_fails_on_one": "failed",
        f"{A}::TestRanks::test_state_is_made_afresh": "passed",
        f"{A}::TestRanks::test_hangs_on_one": "timeout",
        f"{A}::TestRanks::test_dies_on_one": "crashed",
    }
    assert session.results[f"{A}::TestRanks::test_fails_on_one"].rank == 1
    assert "1 not run" in outcomes.summary(session.results, session.collected)


PASSED, FAILED = Result("passed"), Result("failed", "KeyError")
LAYOUT = INTENDED[0].test


def compare(unpatched, patched, release="0.18.2"):
    return outcomes.compare(unpatched, patched, release, INTENDED)


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (PASSED, PASSED, None),
        (FAILED, FAILED, None),
        (PASSED, FAILED, "worse"),
        (Result("skipped"), Result("crashed"), "worse"),
        (PASSED, Result("timeout"), "worse"),
        (FAILED, PASSED, "better"),
        (Result("crashed"), PASSED, "better"),
        (FAILED, Result("failed", "AttributeError"), "other"),
        (FAILED, Result("crashed"), "other"),
        (PASSED, Result("skipped"), "other"),
        (PASSED, None, "not run"),
        (None, PASSED, "not run"),
    ],
)
def test_change(before, after, change):
    unpatched, patched = ({} if r is None else {"test": r} for r in (before, after))
    compared = compare(unpatched, patched)
    assert [d.change for d in compared.differences] == ([] if change is None else [change])
    assert bool(compared.wrong) == (change == "worse")
    assert compared.incomplete == (change == "not run")


@pytest.mark.parametrize("release", ["0.18.0", "0.18.2"])
def test_intended_difference(release):
    compared = compare({f"{LAYOUT}[3]": PASSED}, {f"{LAYOUT}[3]": FAILED}, release)
    assert "kv-append-offset-dtype" in compared.differences[0].intended
    assert not compared.wrong
    assert compared.stale == []


@pytest.mark.parametrize(
    ("test", "release"),
    [(f"{LAYOUT}[3]", "0.17.1"), (f"{LAYOUT}[3]", "0.19.2"), (f"{LAYOUT}_other", "0.18.2")],
)
def test_intended_difference_is_one_of_a_test_and_of_releases(test, release):
    assert compare({test: PASSED}, {test: FAILED}, release).wrong


def test_entry_for_a_test_that_passes_is_stale():
    assert compare({f"{LAYOUT}[3]": PASSED}, {f"{LAYOUT}[3]": PASSED}).stale == [LAYOUT]
    assert compare({f"{LAYOUT}[3]": FAILED}, {f"{LAYOUT}[3]": FAILED}).stale == []
    assert compare({}, {}).stale == []


def test_intended_tests_have_a_reason():
    for entry in INTENDED:
        assert isinstance(entry, Intended)
        assert entry.reason
        assert entry.test.startswith("tests/unit_tests/")
        assert "[" not in entry.test


def command(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "tools/upstream_tests.py", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


DIFFERS = """
import os

def test_differs():
    assert os.environ["MEGATRON_PATCH"] == "none"

def test_same():
    pass
"""


@pytest.mark.parametrize("together", [False, True])
def test_test_that_fails_with_patches_only(checkout, tmp_path, together):
    checkout.write(A, DIFFERS)
    arguments = ["--megatron", checkout.root, "--json", tmp_path / "result.json", A]
    done = command(*arguments, *(["--together"] if together else []))
    assert done.returncode == 1, done.stderr
    assert f"worse: {A}::test_differs" in done.stdout
    assert "unpatched: 2 passed" in done.stdout
    assert "patched: 1 passed, 1 failed" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["megatron_core"] == "0.18.2"
    assert result["complete"]
    assert [d["test"] for d in result["differences"]] == [f"{A}::test_differs"]
    assert result["sessions"]["unpatched"]["results"][f"{A}::test_same"]["outcome"] == "passed"
    assert checkout.unchanged()


def test_without_a_patch_there_is_nothing_to_compare(checkout):
    checkout.write(A, "def test_same():\n    pass\n")
    done = command("--megatron", checkout.root, A)
    assert done.returncode == 2, done.stdout
    assert "no test differs" in done.stdout


@pytest.mark.parametrize("missing", ["tests", "megatron"])
def test_checkout_that_is_none(checkout, missing):
    (checkout.root / missing).rename(checkout.root / "elsewhere")
    done = command("--megatron", checkout.root)
    assert done.returncode == 2
    assert "expected" in done.stderr
    assert "Traceback" not in done.stderr


REAL = """
import torch
from megatron.core import utils
from megatron.core.inference.contexts import dynamic_context
from megatron.core.transformer import attention

try:
    from transformer_engine.pytorch.fp8 import check_fp8_support
except ImportError:
    check_fp8_support = None

def test_what_is_missing_is_stood_in_for():
    assert attention.flash_attn_varlen_func is not None
    assert utils.is_te_min_version("0.0.0")
    assert check_fp8_support is not None
    assert dynamic_context.DynamicInferenceContext
    assert torch.zeros(1, device=torch.cuda.current_device()) == 0

def test_patched():
    import megatron_patch

    assert all(str(entry.state) == "disabled" for entry in megatron_patch.status())
"""


def test_installed_megatron_is_tested_with_the_tests_of_a_checkout(checkout, tmp_path):
    checkout.write(A, REAL)
    arguments = ["--megatron", checkout.root, "--installed", "--json", tmp_path / "result.json", A]
    done = command(*arguments, PYTHONWARNINGS="ignore")
    assert done.returncode == 1, done.stdout + done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert [d["test"] for d in result["differences"]] == [f"{A}::test_patched"]
    assert "applied" in result["sessions"]["patched"]["states"].values()
    assert set(result["sessions"]["unpatched"]["states"].values()) == {"disabled"}
    assert result["megatron_core"] == core_version()
