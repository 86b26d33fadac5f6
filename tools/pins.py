"""The pinned Megatron-Core releases, and the source that is in their wheels.

The pins are written in one place: the lines `mcoreNNN: megatron-core==VERSION` of `tox.ini`. The
wheels are platform wheels, but only the Python source in them is read here, so that any Python on
any machine gets the same ones. Nothing of Megatron is installed, imported or executed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from megatron_patch.source_tree import SourceTree  # noqa: E402

PINNED = re.compile(r"^[ \t]*(mcore\d+):[ \t]*megatron-core==(\S+)[ \t]*$", re.MULTILINE)
VERSION = re.compile(r"(\d+)\.(\d+)\.\d+((a|b|rc)\d+)?(\.(post|dev)\d+)?")
# The Pythons and the platforms for which pip is asked for a wheel; the newest first.
PYTHONS = ("3.13", "3.12", "3.11", "3.10")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64")


class PinError(Exception):
    """A release or a pin cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Pin:
    """A supported release, and the tox factor that its tests have."""

    factor: str
    version: str

    @classmethod
    def of(cls, version: str) -> Pin:
        """The pin of a version: `mcore019` for 0.19.2. Raises `PinError` if it is not a version."""
        match = VERSION.fullmatch(version)
        if match is None:
            raise PinError(
                f"{version!r} is not a version of megatron-core; expected one like 0.19.2"
            )
        return cls(f"mcore{match[1]}{int(match[2]):02}", version)

    @property
    def number(self) -> int:
        """The release line as a number, by which pins are ordered: 19 for 0.19.2."""
        return int(self.factor.removeprefix("mcore"))


def read_pins(tox_ini: str) -> list[Pin]:
    """The pins in the text of `tox.ini`, in their order there. Raises `PinError` if it has none."""
    found = [Pin(*match) for match in PINNED.findall(tox_ini)]
    if not found:
        raise PinError("tox.ini has no line like `mcore019: megatron-core==0.19.2` in its deps")
    return found


def default_cache() -> Path:
    """Where wheels are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "megatron-patch", "wheels")


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    """Give a tool that reads wheels the option that says where they are kept."""
    parser.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        default=default_cache(),
        help="keep wheels there; default: %(default)s",
    )


def wheel(version: str, cache: Path) -> Path:
    """The wheel of a release, from the cache if it is there. Raises `PinError`."""
    pattern = f"megatron_core-{Pin.of(version).version}-*.whl"
    kept = sorted(cache.glob(pattern))
    if not kept:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            download(version, Path(directory))
            for path in Path(directory).glob(pattern):
                kept.append(path.replace(cache / path.name))
    if not kept:
        raise PinError(f"pip downloaded no {pattern}; put that wheel into {cache} yourself")
    return kept[0]


def download(version: str, directory: Path) -> None:
    """Let pip put the wheel of a release into the directory. Raises `PinError`."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", f"--dest={directory}"]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    errors = []
    for python in PYTHONS:
        done = subprocess.run(
            [*command, f"--python-version={python}", f"megatron-core=={version}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return
        errors.append(done.stderr.rstrip())
        if "No matching distribution" not in done.stderr:
            break  # it failed for another reason than that there is no wheel for this Python
    raise PinError(
        f"pip cannot get the wheel of megatron-core {version}:\n{errors[0]}\n"
        "Look at pip's configuration, or put the wheel into the directory that --cache names"
    )


def builds() -> list[str]:
    """The builds of megatron-core that pip finds, development builds too. Raises `PinError`."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions"]
    command += ["--pre", "--only-binary=:all:", f"--python-version={PYTHONS[1]}"]
    command += [*(f"--platform={platform}" for platform in PLATFORMS), "megatron-core"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^Available versions: (.+)$", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        raise PinError(
            f"pip cannot list the builds of megatron-core:\n{done.stdout}{done.stderr}".rstrip()
            + "\nLook at pip's configuration"
        )
    return found[1].split(", ")


@contextmanager
def source(version: str, cache: Path) -> Iterator[SourceTree]:
    """The source of a release, for as long as the context lasts. Raises `PinError`."""
    path = wheel(version, cache)
    with tempfile.TemporaryDirectory() as directory:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [n for n in archive.namelist() if re.fullmatch(r"megatron/core/.*\.py", n)]
                archive.extractall(directory, names)
        except zipfile.BadZipFile as error:
            raise PinError(f"{path} is not a wheel: {error}. Remove it") from error
        yield SourceTree.at(Path(directory))


def oldest_python(version: str, cache: Path) -> tuple[int, int]:
    """The oldest Python that a release is for, by the metadata of its wheel."""
    with zipfile.ZipFile(wheel(version, cache)) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    match = re.search(r">=\s*(\d+)\.(\d+)", metadata.get("Requires-Python", ""))
    return (int(match[1]), int(match[2])) if match else (3, 0)
