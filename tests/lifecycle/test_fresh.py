"""The machinery of the lifecycle tests: a failure must be seen, and nothing must stay behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .fresh import InFreshProcess, run_in_child


class Cases(InFreshProcess):
    def test_passes(self):
        print("said in passing")

    def test_fails(self, number):
        expected = 7
        assert number == expected, "told of the number"

    def test_skips(self):
        pytest.skip("the release has no such thing")

    def test_exits(self):
        os._exit(3)

    def test_leaves_a_process(self, where):
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
        where.write_text(str(sleeper.pid))


class Hanging(InFreshProcess):
    timeout = 2

    def test_hangs(self):
        def wait_here():
            time.sleep(100)

        wait_here()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_case_that_passes():
    assert run_in_child(Cases, "test_passes") == ("", "said in passing\n")


def test_a_failing_case_shows_its_traceback():
    problem, output = run_in_child(Cases, "test_fails", number=6)
    assert problem == "exit status 1"
    assert "assert number == expected" in output
    assert "told of the number" in output
    assert run_in_child(Cases, "test_fails", number=7) == ("", "")


def test_failing_and_skipping_in_the_child_is_failing_and_skipping_here():
    with pytest.raises(pytest.fail.Exception, match="told of the number"):
        Cases().test_fails(number=6)
    with pytest.raises(pytest.skip.Exception, match="the release has no such thing"):
        Cases().test_skips()


def test_a_case_that_ends_its_process_has_failed():
    assert run_in_child(Cases, "test_exits")[0] == "exit status 3"


def test_a_case_that_hangs_is_ended_and_shows_where():
    problem, output = run_in_child(Hanging, "test_hangs")
    assert problem == "not ended after 2 s"
    assert "in wait_here" in output


def test_a_process_left_behind_is_ended_and_is_a_failure(tmp_path):
    where = tmp_path / "pid"
    problem, _ = run_in_child(Cases, "test_leaves_a_process", where=where)
    assert problem.startswith("left processes behind")
    assert "time.sleep(100)" in problem
    assert not is_running(int(where.read_text()))


class TestEachTest(InFreshProcess):
    """Runs in a process of its own, where nothing of Megatron or of us is imported."""

    def test_has_a_session_of_its_own(self):
        assert os.getsid(0) == os.getpid()

    def test_finds_neither_megatron_nor_us_imported(self):
        assert "torch" in sys.modules
        found = [n for n in sys.modules if n.partition(".")[0] in ("megatron", "megatron_patch")]
        assert found == [], found

    def test_sees_no_setting(self):
        assert not [name for name in os.environ if name.startswith("MEGATRON_PATCH")]

    def test_takes_fixtures(self, tmp_path):
        assert isinstance(tmp_path, Path)
        assert tmp_path.is_dir()
