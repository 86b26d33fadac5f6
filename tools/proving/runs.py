"""Run the proofs of patches on one commit of Megatron, unpatched and patched, on the CPU."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from xml.etree import ElementTree

from megatron_patch.ledger import FORMAT

REPOSITORY = Path(__file__).parents[2]
#: What the proofs need of this repository.
OURS = ("megatron_patch", "tests", "tools", "pyproject.toml")
BUILD = """
from megatron_patch import testing

testing.start()
spec = testing.EngineSpec(max_requests=4)
testing.decode(testing.build_engine(spec), [testing.Request((1, 2), num_tokens=2)])
"""


class Outcome(str, Enum):
    """What the proofs of one patch say of the source that they ran on."""

    PASSES = "passes"
    FAILS = "fails"
    LACKS = "has no such feature"  #: all tests are skipped
    BROKEN = "does not run"  #: the tests could not be collected, or took too long

    def __str__(self) -> str:
        return self.value


def module_of(patch: str) -> str:
    """The test module of a patch, relative to the repository."""
    return f"tests/backports/test_{patch.replace('-', '_')}.py"


class Bench:
    """A copy of this repository and of Megatron at one commit, in a folder of its own.

    ``megatron`` is what ``git archive`` gives for ``megatron``, or the folder that holds it, which
    is used where it lies. Use the bench in a ``with`` statement; its folder goes with it.
    """

    def __init__(
        self, megatron: bytes | Path, python: str = sys.executable, seconds: float = 600
    ) -> None:
        self.python = python
        self.seconds = seconds
        self._folder = tempfile.TemporaryDirectory(prefix="prove-")
        root = Path(self._folder.name)
        self.repository, self.megatron = root / "repository", root / "megatron-lm"
        self.repository.mkdir()
        ignore = shutil.ignore_patterns("__pycache__")
        for name in OURS:
            if (REPOSITORY / name).is_dir():
                shutil.copytree(REPOSITORY / name, self.repository / name, ignore=ignore)
            else:
                shutil.copy(REPOSITORY / name, self.repository / name)
        if isinstance(megatron, Path):
            self.megatron = megatron.resolve()
            return
        with tarfile.open(fileobj=io.BytesIO(megatron)) as tar:
            tar.extractall(self.megatron, filter="data")

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def know(self, entries: Mapping[str, Sequence[Mapping[str, object]]]) -> None:
        """Make ``entries`` the ledger of the copy: by patch, as :mod:`~megatron_patch.ledger`."""
        content = {"format": FORMAT, "patches": entries}
        path = self.repository / "megatron_patch" / "ledger" / "proofs.json"
        path.write_text(json.dumps(content))

    def run(self, patches: Iterable[str], selection: str) -> dict[str, Outcome]:
        """Run the proofs of ``patches`` with the patches that ``MEGATRON_PATCH`` selects."""
        modules = {patch: module_of(patch) for patch in patches}
        report = self.repository / "report.xml"
        report.unlink(missing_ok=True)
        command = [self.python, "-m", "pytest", "-q", "-x" if len(modules) == 1 else "-q"]
        command += ["-p", "no:cacheprovider", "-m", "proof", "-o", "filterwarnings=default"]
        command += [f"--junitxml={report}", *modules.values()]
        try:
            subprocess.run(
                command,
                cwd=self.repository,
                env=self._environment(selection),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=self.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return dict.fromkeys(modules, Outcome.BROKEN)
        return outcomes(report, modules)

    def builds_an_engine(self) -> bool:
        """Whether this Megatron, unpatched, can be run here as proofs run it.

        They say how many requests an engine takes, which early builds of 0.16 cannot be told.
        """
        try:
            done = subprocess.run(
                [self.python, "-W", "ignore", "-c", BUILD],
                cwd=self.repository,
                env=self._environment("none"),
                capture_output=True,
                timeout=self.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def _environment(self, selection: str) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (self.repository, self.megatron))),
            "MEGATRON_PATCH": selection,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            # Some commits build an extension on import, and PyTorch asks a GPU what to build for.
            "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def outcomes(report: Path, modules: Mapping[str, str]) -> dict[str, Outcome]:
    """What a report in JUnit's format says of each patch."""
    counts: dict[str, Counter[str]] = {patch: Counter() for patch in modules}
    names = {module.removesuffix(".py").replace("/", "."): p for p, module in modules.items()}
    if not report.is_file():
        return dict.fromkeys(modules, Outcome.BROKEN)
    for case in ElementTree.parse(report).iter("testcase"):
        place = case.get("classname") or case.get("name") or ""
        patch = next((p for name, p in names.items() if place.startswith(name)), None)
        if patch is not None:
            kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
            counts[patch][kinds[0] if kinds else "passed"] += 1
    return {patch: _outcome(count) for patch, count in counts.items()}


def _outcome(count: Counter[str]) -> Outcome:
    if count["failure"] or count["error"]:
        return Outcome.FAILS
    if count["passed"]:
        return Outcome.PASSES
    return Outcome.LACKS if count["skipped"] else Outcome.BROKEN
