"""The guide to a new backport is right: each of its steps is run, in a copy of this tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from megatron_patch.source_tree import SourceTree
from megatron_patch.testing.version import core_version

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "adding-a-backport.md"
#: What the steps need of the repository; a checkout may have large folders besides.
NEEDED = ("megatron_patch", "tests", "tools", "docs", "pyproject.toml", "tox.ini")

#: The backport that the guide adds.
EXAMPLE = "unified_memory_threads"
EXAMPLE_TARGET = "megatron.core.inference.unified_memory:_compile_timeout"

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Step(NamedTuple):
    """A command and what it has to print; or a file to write, and its text."""

    command: str
    text: str
    is_file: bool


def steps(guide: str) -> Iterator[Step]:
    """The steps of a guide, in order."""
    for language, block in BLOCK.findall(guide):
        if language == "console":
            assert block.startswith("$ "), block
            for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                line, _, printed = command.partition("\n")
                yield Step(line, printed, False)
        elif language != "sh":
            first, _, text = block.partition("\n")
            assert first.startswith("# "), f"expected the path of the file: {first!r}"
            yield Step(first[2:], text, True)


def prints(expected: str, printed: str) -> bool:
    """Whether ``printed`` is what is expected, where ``...`` is anything, or nothing."""
    lines = (re.escape(line).replace(r"\.\.\.", ".*?") for line in expected.splitlines())
    pattern = "".join(r"(?s:.*?)" if line == ".*?" else rf"{line}\n" for line in lines)
    return re.fullmatch(pattern, printed) is not None


def run(command: str, folder: Path) -> str:
    """What the command prints in ``folder``, a copy of the repository."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MEGATRON_PATCH")}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={
            **variables,
            "MEGATRON": str(SourceTree.installed().root),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    return done.stdout


def take_out_the_example(folder: Path) -> None:
    """Remove the backport that the guide adds, which is in the series."""
    for path in (*folder.glob("megatron_patch/backports/*/*"), *folder.glob("tests/backports/*")):
        if path.stem in (EXAMPLE, f"test_{EXAMPLE}"):
            path.unlink()
    series = folder / "megatron_patch" / "backports" / "__init__.py"
    lines = series.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if EXAMPLE not in line.lower()]
    assert len(lines) - len(kept) == 2
    series.write_text("".join(kept), encoding="utf-8")
    for name, key in (("proofs", "patches"), ("sources", "targets")):
        ledger = folder / "megatron_patch" / "ledger" / f"{name}.json"
        content = json.loads(ledger.read_text(encoding="utf-8"))
        of_example = (EXAMPLE.replace("_", "-"), EXAMPLE_TARGET)
        content[key] = {k: v for k, v in content[key].items() if k not in of_example}
        ledger.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.skipif(core_version() != "0.16.1", reason="the example is for 0.16.1")
def test_each_step_does_what_the_guide_says(tmp_path):
    for name in NEEDED:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    take_out_the_example(tmp_path)
    found = list(steps(GUIDE.read_text(encoding="utf-8")))
    assert sum(step.is_file for step in found) == 3
    assert len(found) > 10
    for step in found:
        if step.is_file:
            path = tmp_path / step.command
            assert "TODO" in path.read_text(encoding="utf-8"), f"{path} is no stub"
            path.write_text(step.text, encoding="utf-8")
        else:
            printed = run(step.command, tmp_path)
            assert prints(step.text, printed), f"{step.command}\n{printed}"


GUIDE_OF_TWO = """\
```console
$ one
1
...
$ two
```

```sh
three
```

```python
# a/b.py
four = 4
```
"""


def test_the_steps_of_a_guide_are_its_commands_and_files():
    assert list(steps(GUIDE_OF_TWO)) == [
        Step("one", "1\n...\n", False),
        Step("two", "", False),
        Step("a/b.py", "four = 4\n", True),
    ]


@pytest.mark.parametrize(
    ("expected", "printed", "is_right"),
    [
        ("", "", True),
        ("", "1\n", False),
        ("1\n", "1\n", True),
        ("1\n", "1\n2\n", False),
        ("1\n...\n", "1\n", True),
        ("1\n...\n3\n", "1\n2\n2\n3\n", True),
        ("1\n...\n3\n", "1\n2\n", False),
        ("in ... s\n", "in 2.5 s\n", True),
        ("in ... s\n", "in\n2.5 s\n", False),
        ("(.*)\n", "1\n", False),
    ],
)
def test_what_is_printed_is_compared(expected, printed, is_right):
    assert prints(expected, printed) is is_right
