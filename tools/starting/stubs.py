"""The text of the files that a new backport starts as.

What a person has to write says :data:`FILL`. The contract test refuses a record that still does.
"""

from __future__ import annotations

from typing import NamedTuple

from megatron_patch.edits import Target

FILL = "TODO"


class Stub(NamedTuple):
    """What is known of a backport before it is written.

    ``variant`` is the name of its first variant, ``today`` a date (``YYYY-MM-DD``).
    """

    id: str
    target: Target
    is_ours: bool
    variant: str
    today: str

    @property
    def name(self) -> str:
        """The id as the name of a module."""
        return self.id.replace("-", "_")

    @property
    def constant(self) -> str:
        """The name of the record."""
        return self.name.upper()

    @property
    def folder(self) -> str:
        """The package that the record is in."""
        return "ours" if self.is_ours else "upstream"

    def files(self) -> dict[str, str]:
        """All new files: path, relative to the repository, and text."""
        record = f"megatron_patch/backports/{self.folder}/{self.name}"
        made = {
            f"{record}.py": self._record(),
            f"{record}.diff": self._hunk(),
            f"tests/backports/test_{self.name}.py": self._test(),
        }
        if self.is_ours:
            made[f"docs/upstream/{self.id}.md"] = REPORT.format(target=self.target)
        return made

    def _record(self) -> str:
        upstream = NONE_OF_UPSTREAM if self.is_ours else UPSTREAM
        target = f'TARGET = "{self.target}"'
        if len(target) > 100:
            target = f'TARGET = (\n    "{self.target.module}:"\n    "{self.target.qualname}"\n)'
        return RECORD.format(
            id=self.id,
            constant=self.constant,
            upstream=upstream,
            today=self.today,
            target=target,
            variant=self.variant,
            told="" if self.is_ours else "    told_by=(TARGET,),\n",
        )

    def _hunk(self) -> str:
        path = self.target.module.replace(".", "/")
        return (
            f"--- a/{path}.py\n+++ b/{path}.py\n@@ {self.target.qualname} @@\n"
            f'-"{FILL}: code of the function, which is there once"\n'
            f'+"{FILL}: what takes its place"\n'
        )

    def _test(self) -> str:
        record = f"from megatron_patch.backports.{self.folder}.{self.name} import "
        named = self.constant
        if len(record + named) > 100:
            named = f"(\n    {named},\n)"
        fixture = f'    return importlib.import_module("{self.target.module}")'
        if len(fixture) > 100:
            fixture = f'    name = "{self.target.module}"\n    return importlib.import_module(name)'
        return TEST.format(record=record + named, fixture=fixture, constant=self.constant)


RECORD = '''\
"""TODO: what the change does, in one line.

TODO: what goes wrong without it, and why; what differs from upstream; what is not covered.
"""

from __future__ import annotations

from ... import hunks
from ...model import Kind, Patch, Variant

HUNKS = hunks.beside(__file__)

{target}

{constant} = Patch(
    id="{id}",
    kind=Kind.CORRECTNESS,  # or PERFORMANCE
    summary="TODO: the subject of the exported commit",
    symptom="TODO: what a user sees without the patch",
    outcome="TODO: what there is with it",
{upstream}    releases="TODO: of those that need it, such as >=0.16,<0.17",
    removal="TODO: when the record can be deleted",
    updated="{today}",
    target=TARGET,
    variants=(Variant("{variant}", HUNKS.of("{variant}")),),
{told})
'''

UPSTREAM = """\
    upstream_pr=0,
    upstream_commit="TODO: 40 hexadecimal digits",
    upstream_date="TODO: YYYY-MM-DD",
    fixed_in="0.0.0",
"""

NONE_OF_UPSTREAM = """\
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
"""

TEST = '''\
"""TODO: what is asked here, on whichever release is installed."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

{record}

from .checks import assert_state_of_record, needs, proof


@pytest.fixture
def module(device) -> Any:
    """The module of the target."""
{fixture}


def test_state(module):
    assert_state_of_record({constant})


@proof
def test_todo(module):
    needs(True, "TODO: what the source has to have for the question to come up")
    pytest.fail("TODO: show what goes wrong without the patch, through Megatron's own code")
'''

REPORT = """\
# TODO: what is wrong, in one line

The text of an issue for [Megatron-LM](https://github.com/NVIDIA/Megatron-LM/issues); not sent yet.

## Versions

TODO: `{target}`.

## What happens

TODO

## Reproduction

TODO: a script, also without a GPU.

## Suggested fix

TODO

## What we have verified, and what not

TODO
"""
