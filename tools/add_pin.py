"""Support another Megatron-Core release, or move the pin of a release line.

    python tools/add_pin.py 0.19.2 --dry-run    # says what it would do
    python tools/add_pin.py 0.19.2

Reports what differs from the nearest pin, as `tools/pin_report.py` does, writes the pin into
`tox.ini`, and refreshes `patches/` and the tables. A release of a line that has a pin takes that
pin's place. When a backport is drifted on the new release, nothing is written: docs/adding-a-pin.md
says how to look at it and to prove it. --force adds the pin before that.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from megatron_patch.backports import SERIES  # noqa: E402
from megatron_patch.errors import DriftedError, NotMegatronError  # noqa: E402
from tools import pin_report, pins, refresh_patches  # noqa: E402
from tools.pins import Pin, PinError  # noqa: E402

# `py{310,311}-mcore{014,015}` and `py312-mcore019` of env_list and labels.
ENVIRONMENTS = re.compile(r"\b(py)(\{[\d,]+\}|\d+)(-mcore)(\{[\d,]+\}|\d+)")


def nearest(pin: Pin, existing: Sequence[Pin]) -> Pin:
    """The pin of the same release line, else of the nearest older line, else the oldest pin."""
    ordered = sorted(existing, key=lambda other: other.number)
    below = [other for other in ordered if other.number <= pin.number]
    return below[-1] if below else ordered[0]


def with_pin(text: str, pin: Pin, near: Pin, oldest: tuple[int, int]) -> str:
    """The text of `tox.ini` with `pin`, whose lines are modelled on those of the pin `near`.

    `oldest` is the oldest Python that the release is for. Raises `PinError` when the environments
    of `near` have an older Python.
    """
    if pin.factor != near.factor:
        text = _with_environments(text, pin, near, oldest)
    before = text

    def line(match: re.Match[str]) -> str:
        new = f"{match[1]}{pin.factor}{match[2]}{pin.version}"
        if pin.factor == near.factor:
            return new
        if f"{new}\n" in before:
            return match[0]
        return "\n".join((match[0], new) if near.number < pin.number else (new, match[0]))

    of_near = rf"^([ \t]*){near.factor}(:.*[= ]){re.escape(near.version)}$"
    return re.sub(of_near, line, text, flags=re.MULTILINE)


def _with_environments(text: str, pin: Pin, near: Pin, oldest: tuple[int, int]) -> str:
    number, neighbour = (other.factor.removeprefix("mcore") for other in (pin, near))
    found = [re.findall(r"\d+", match[4]) for match in ENVIRONMENTS.finditer(text)]
    if any(number in numbers for numbers in found):
        return text

    def line(match: re.Match[str]) -> str:
        numbers = re.findall(r"\d+", match[4])
        if neighbour not in numbers:
            return match[0]
        for python in re.findall(r"\d+", match[2]):
            if (int(python[0]), int(python[1:])) < oldest:
                raise PinError(
                    f"megatron-core {pin.version} needs Python {oldest[0]}.{oldest[1]}, and "
                    f"tox.ini tests {near.version} on py{python}. Write a line for {pin.factor} "
                    "into its env_list, and the torch for its Python into deps; then run this again"
                )
        numbers.insert(numbers.index(neighbour) + (near.number < pin.number), number)
        return f"{match[1]}{match[2]}{match[3]}{{{','.join(numbers)}}}"

    return ENVIRONMENTS.sub(line, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Support another Megatron-Core release, or move the pin of a release line.",
        epilog="Exit status: 0; 1 when a backport is drifted on the release; 2 when the source of "
        "the release or of a pin cannot be had.",
    )
    parser.add_argument("version", metavar="VERSION", help="a released version, such as 0.19.2")
    parser.add_argument(
        "--force", action="store_true", help="add it although a backport is drifted"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be written")
    pins.add_cache_option(parser)
    options = parser.parse_args(arguments)
    try:
        return _add(options.version, options.cache, options.force, options.dry_run)
    except (PinError, NotMegatronError) as error:
        print(f"add_pin: {error}", file=sys.stderr)
        return 2
    except DriftedError as error:
        print(f"add_pin: nothing was written: {error}", file=sys.stderr)
        return 1


def _add(version: str, cache: Path, force: bool, dry_run: bool) -> int:
    old = (REPOSITORY / "tox.ini").read_text(encoding="utf-8")
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    pin = Pin.of(version)
    near = nearest(pin, pins.read_pins(old))
    with pins.source(near.version, cache) as before, pins.source(version, cache) as after:
        report = pin_report.compare(before, after, SERIES)
    print(f"megatron-core {near.version} -> {version}\n{report}\n")
    if report.drifted and not force:
        print(
            f"add_pin: nothing was written: drifted on {version}: {', '.join(report.drifted)}. "
            "Look at the code and prove it with tools/prove.py (docs/adding-a-pin.md, step 2), and "
            "run this again; or add the pin first, with --force",
            file=sys.stderr,
        )
        return 1
    new = with_pin(old, pin, near, pins.oldest_python(version, cache))
    files, _ = refresh_patches.generated(pins.read_pins(new), SERIES, cache, readme)
    files["tox.ini"] = new.encode()
    paths = refresh_patches.outdated(REPOSITORY, files)
    if dry_run:
        lines = old.splitlines(), new.splitlines()
        print(*difflib.unified_diff(*lines, "tox.ini", "tox.ini", n=0, lineterm=""), sep="\n")
        for path in paths:
            print(f"would {'write' if path in files else 'remove'} {path}")
        return 0
    refresh_patches.write(REPOSITORY, files, paths)
    print(f"{version} is pinned. Now: tox run -f {pin.factor}, and a line in CHANGELOG.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
