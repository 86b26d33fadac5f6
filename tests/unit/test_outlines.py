"""Outlines of files: the same definitions as by parsing, for the text that they were made of."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

import pytest

from megatron_patch import definitions, outlines
from tools.outlining import outline

TEXT = '''\
from __future__ import annotations

import os, sys as system


class Context:
    """A class."""

    @property
    def size(self):
        """A number."""
        return os.cpu_count()

    def twice(self):
        pass

    def twice(self):
        pass


def double(x): y = 2 * x; return y


async def wait(): pass; later = 1
try:
    import there

    def tried():
        return there
except ImportError:
    pass
'''
THERE = ["Context.size", "Context.absent", "double", "wait", "tried"]
NAMES = [*THERE, "Context.twice", "Context"]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that makes the outline of a text known."""

    def know(text: str) -> None:
        made = {outlines.digest_of(text): outline("module", text, NAMES)}
        content = outlines.as_json(made)
        monkeypatch.setattr(outlines, "read_data", lambda file: content)
        outlines._files.cache_clear()
        definitions.forget()

    yield know
    monkeypatch.undo()
    outlines._files.cache_clear()
    definitions.forget()


def test_a_known_file_gives_what_parsing_it_gives_and_is_not_parsed(known, monkeypatch):
    expected = {name: definitions.parsed("module", TEXT, name) for name in THERE}
    known(TEXT)
    monkeypatch.setattr(definitions, "_parse_module", pytest.fail)
    for name in THERE:
        found = definitions.locate("module", TEXT, name)
        assert found == expected[name]
        if found is not None:
            assert found.digest == expected[name].digest
            assert ast.dump(found.node, include_attributes=True) == ast.dump(
                expected[name].node, include_attributes=True
            )


@pytest.mark.parametrize(
    ("name", "why"), [("Context.twice", "is defined 2 times"), ("Context", "is a class")]
)
def test_what_has_to_be_complained_of_is_parsed(known, name, why):
    known(TEXT)
    with pytest.raises(definitions.TargetError, match=why):
        definitions.locate("module", TEXT, name)


def test_a_name_that_the_outline_does_not_have_is_looked_for(known):
    known(TEXT.replace("def double", "def treble"))
    text = TEXT.replace("def double", "def treble")
    assert definitions.locate("module", text, "treble").first_line == 21


@pytest.mark.parametrize("other", [TEXT + "\n", TEXT.replace("\n", "\r\n"), TEXT[:-1], "x\ud800"])
def test_any_other_text_is_parsed(known, other):
    known(TEXT)
    assert outlines.outline_of(TEXT) is not None
    assert outlines.outline_of(other) is None
