"""What a metavariable stands for may be any expression, is put back as found, and has to be known.

For each metavariable in the edits that the installed release gets: another expression is put in
its place in the source. The edit makes of it what the hunk does with that expression written out in
it, or it is refused with an error, where the text would need parentheses; and the patch has to be
refused, since nobody has proved it there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_patch.backports import SERIES
from megatron_patch.definitions import Definition, lines_of
from megatron_patch.edits import METAVARIABLE, Before, Replace, Substitute, Target
from megatron_patch.errors import RewriteError
from megatron_patch.judge import judge
from megatron_patch.matching import places
from megatron_patch.model import Patch
from megatron_patch.rewrite import edited
from megatron_patch.sources import read_source
from megatron_patch.verdicts import Verdict, find_definition

#: Expressions that bind as tight as a name does, wherever they are written.
ATOMS = (
    "other",
    "self.other[0]",
    "call(other, key=other)",
    "[\n    other,\n    {'key': other},\n]",
    "f'{other} {other!r:>{other}}'",
)
#: Expressions that need parentheses in some places; written with them, which the tree leaves out.
LOOSE = (
    "(other + other)",
    "(not other)",
    "(other if other else self)",
    "(lambda: other)",
    "(other, *other)",
    "(other == other < other)",
    "(other := self)",
)
#: What can be assigned to.
TARGETS = ("other", "self.other", "other[self, 0]", "call().other")


class Use(NamedTuple):
    """One metavariable in an edit; ``definition`` is the result of the edits before this one."""

    patch: Patch
    edit: Substitute
    name: str
    definition: Definition
    is_first: bool


def _read(module: str) -> str | None:
    text = read_source(module)
    return text.replace("\r\n", "\n").replace("\r", "\n") if text else text


def uses() -> Iterator[Use]:
    for patch in SERIES:
        variant = judge(patch, _read).variant
        there: dict[str, Definition] = {}
        for edit in variant.edits if variant else ():
            if not isinstance(edit, (Before, Replace, Substitute)):
                continue
            known = find_definition(edit.target, _read)
            assert known is not None
            before = there.get(edit.target, known)
            if isinstance(edit, Substitute):
                for name in dict.fromkeys(re.findall(rf"\b{METAVARIABLE}\w+", edit.find)):
                    yield Use(patch, edit, name, before, before is known)
            there[edit.target] = edited(before, edit)


USES = list(uses())


def stands_for(name: str, pattern: Any, found: Any) -> Iterator[ast.expr]:
    """The nodes of ``found`` that are where ``pattern``, which matches it, has the metavariable."""
    if isinstance(pattern, ast.Name) and pattern.id.startswith(METAVARIABLE):
        if pattern.id == name:
            yield found
    elif isinstance(pattern, list):
        for one, other in zip(pattern, found, strict=True):
            yield from stands_for(name, one, other)
    elif isinstance(pattern, ast.AST):
        for field in pattern._fields:
            yield from stands_for(name, getattr(pattern, field), getattr(found, field))


def nodes_of(use: Use) -> list[ast.expr]:
    """All nodes of the source that the metavariable stands for."""
    (place,) = places(use.definition.node, use.edit.find, use.edit.put)
    pattern: Any = ast.parse(use.edit.find).body
    if place.body is None:
        pattern = [pattern[0].value]
    found = list(stands_for(use.name, pattern, [*place.nodes]))
    assert len(found) == len(re.findall(rf"\b{use.name}\b", use.edit.find))
    return found


def other_source(use: Use, value: str) -> Definition:
    """The definition with another expression in the metavariable's place."""
    segment, lines = use.definition.segment, lines_of(use.definition.segment)

    def offset(line: int, column: int) -> int:
        row = line - use.definition.first_line
        return sum(map(len, lines[:row])) + len(lines[row].encode()[:column].decode())

    for node in sorted(nodes_of(use), key=lambda node: (-node.lineno, -node.col_offset)):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = offset(node.lineno, node.col_offset)
        end = offset(node.end_lineno, node.end_col_offset)
        segment = segment[:start] + value + segment[end:]
    return replace(use.definition, segment=segment, found=None)


@pytest.mark.parametrize(
    "use", USES, ids=[f"{u.patch.id}-{Target.parse(u.edit.target).name}-{u.name}" for u in USES]
)
def test_any_expression_is_put_back_as_found_and_is_not_known(use: Use) -> None:
    contexts = {type(getattr(node, "ctx", None)) for node in nodes_of(use)}
    values = TARGETS if ast.Store in contexts else (*ATOMS, *LOOSE)

    @given(st.sampled_from(values))
    def check(value: str) -> None:
        changed = other_source(use, value)
        plain = use.edit._replace(
            find=use.edit.find.replace(use.name, value), put=use.edit.put.replace(use.name, value)
        )
        try:
            made = edited(changed, use.edit)
        except RewriteError:
            assert value in LOOSE
        else:
            assert made.digest == edited(changed, plain).digest
        if use.is_first:
            module = Target.parse(use.edit.target).module
            text = _read(module) or ""
            assert use.definition.segment in text
            new = text.replace(use.definition.segment, changed.segment)
            judgement = judge(use.patch, lambda name: new if name == module else _read(name))
            assert judgement.variant is None
            assert judgement.verdict is Verdict.DRIFTED

    check()


def test_some_edits_have_metavariables() -> None:
    assert all(use.name in use.edit.put or not use.edit.put.strip() for use in USES)
