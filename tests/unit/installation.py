"""An environment of its own with the package in it as a wheel, and a small Megatron."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from .trees import write_patchable_tree

REPOSITORY = Path(__file__).parents[2]
PARTS = ("LICENSE", "README.md", "megatron_patch", "megatron_patch_command.py", "pyproject.toml")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


class Installation(NamedTuple):
    """A virtual environment without PyTorch."""

    python: Path
    packages: Path
    wheel: Path
    settings: dict[str, str]  #: variables with which one patch is applied to its Megatron

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """A process of its Python, in an environment with no more than ``settings``."""
        return _run(self.python, *arguments, **settings)

    def command(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """The command ``megatron-patch``."""
        return _run(self.python.with_name("megatron-patch"), *arguments, **settings)

    def install(self) -> None:
        """Install the wheel."""
        options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
        done = self.run("-m", "pip", "install", *options, str(self.wheel))
        assert done.returncode == 0, done.stderr


def _run(program: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *arguments],
        cwd=program.parents[1],
        env=settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The environment, built once a session. Tests leave it as they find it."""
    root = tmp_path_factory.mktemp("installation")
    source = root / "source"
    source.mkdir()
    for part in PARTS:
        here = REPOSITORY / part
        if here.is_dir():
            shutil.copytree(here, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(here, source)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    built = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, str(root)],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    venv = root / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], env=environment, check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    settings = write_patchable_tree(packages)
    wheel = root / built.stdout.splitlines()[-1]
    made = Installation(venv / "bin" / "python", packages, wheel, settings)
    made.install()
    return made
