"""Which test files the environments of `tox.ini` run."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path

FACTORS = re.compile(r"(?P<condition>[\w!,-]+): (?P<rest>.*)")
SECTION_VALUE = re.compile(r"\{\[(\w+)\](\w+)\}")
FILTERS = ("-k", "-m", "--deselect", "--ignore")


def expanded(text: str) -> Iterator[str]:
    """The names that braces stand for: `py3{10,11}` is `py310` and `py311`."""
    parts = re.split(r"\{([^{}]*)\}", text)
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return map("".join, itertools.product(*choices))


def meets(environment: str, condition: str) -> bool:
    """Whether an environment has the factors: `a-!b,c` is a without b, or c."""
    there = set(environment.split("-"))
    return any(
        all((factor.lstrip("!") in there) is not factor.startswith("!") for factor in one)
        for one in (alternative.split("-") for alternative in condition.split(","))
    )


class ToxIni:
    """What a `tox.ini` says of tests."""

    def __init__(self, text: str) -> None:
        self._ini = RawConfigParser()
        self._ini.read_string(text)

    def by_default(self) -> list[str]:
        """The environments of a plain `tox run`."""
        lines = self._ini["tox"]["env_list"].split()
        return [name for line in lines for name in expanded(line)]

    def labelled(self, label: str) -> list[str]:
        """The environments of `tox run -m LABEL`."""
        labels = (line.partition("=") for line in self._ini["tox"]["labels"].strip().splitlines())
        (found,) = (names for name, _, names in labels if name.strip() == label)
        return [name for part in re.split(r", +", found.strip()) for name in expanded(part)]

    def pytest_arguments(self, environment: str) -> Iterator[list[str]]:
        """The arguments of each `pytest` that the environment runs, without those of the user."""
        section = f"testenv:{environment}"
        if not self._ini.has_section(section):
            section = "testenv"
        if "commands" not in self._ini[section]:
            section = self._ini[section]["base"]
        value = self._ini[section]["commands"]
        for line in value.strip().splitlines():
            found = FACTORS.fullmatch(line)
            if found is not None and not meets(environment, found["condition"]):
                continue
            command = SECTION_VALUE.sub(self._value, found["rest"] if found else line)
            words = shlex.split(re.sub(r"\{posargs:?(.*)\}", r"\1", command))
            if words[0] == "pytest":
                yield words[1:]

    def _value(self, match: re.Match[str]) -> str:
        return self._ini[match[1]][match[2]].replace("\\\n", " ")

    def runs(self, environment: str, file: str) -> bool:
        """Whether the environment runs all tests of a file."""
        places = {file, *(folder.as_posix() for folder in Path(file).parents)}
        for words in self.pytest_arguments(environment):
            is_whole = not any(word.startswith(FILTERS) for word in words)
            if is_whole and (not words or places.intersection(words)):
                return True
        return False
