"""What source says of a patch, and where it is not source that is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from . import definitions, substituting
from .definitions import Definition
from .edits import Substitute, Target
from .model import Variant

#: Gives a module's source text, or ``None`` for a module that does not exist.
Reader = Callable[[str], "str | None"]
#: Gives the definition of a target, ``None`` if there is none.
Finder = Callable[[str], "Definition | None"]

#: What an independent hook needs, in words.
ANY_METHOD = "a plain method with the hook's parameter, and not yet with the hook"


class Verdict(str, Enum):
    """What source says of a patch."""

    APPLICABLE = "applicable"  #: it is known, and needs the patch
    UPSTREAMED = "upstreamed"  #: it has the change already
    NOT_APPLICABLE = "not_applicable"  #: it has no such target, or never needed the change
    DRIFTED = "drifted"  #: it is not known

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Miss:
    """A target whose source is not the one that a variant was proved on."""

    target: str
    expected: str | None  #: its digest; ``None`` for a method that only has to be there
    definition: Definition | None
    substitutes: tuple[Substitute, ...] = ()  #: those of the variant that are to be made in it

    @property
    def found(self) -> str | None:
        """The digest of what is there, ``None`` if nothing is."""
        return None if self.definition is None else self.definition.digest

    @property
    def anchors(self) -> tuple[str, ...]:
        """What is wrong with the code that each ``Substitute`` looks for, if something is."""
        found = []
        for edit in self.substitutes if self.definition is not None else ():
            assert self.definition is not None
            count = substituting.occurrences(self.definition, edit)
            times = "is not there" if count == 0 else f"is there {count} times"
            if count != 1:
                found.append(f"`{substituting.as_written(edit.find)}` {times}; expected once")
        return tuple(found)

    def __str__(self) -> str:
        found = f"found {self.found}" if self.found else "not found"
        return f"{self.target}: expected {self.expected or ANY_METHOD}, {found}"


@dataclass(frozen=True)
class Judgement:
    """What the source says of a patch: ``variant`` is set when, and only when, it applies.

    Where the source is not known, ``misses`` are those against the ``closest`` variant. ``proof``
    are the targets that tell source which has the change already.
    """

    verdict: Verdict
    reason: str
    variant: Variant | None = None
    misses: tuple[Miss, ...] = ()
    closest: Variant | None = None
    proof: tuple[str, ...] = ()


def find_definition(target: str, read: Reader) -> Definition | None:
    """The definition of ``module:Class.method``, ``None`` if there is no such thing.

    Raises ``SyntaxError`` that names the module when its text does not parse.
    """
    parsed = Target.parse(target)
    text = read(parsed.module)
    try:
        return None if text is None else definitions.locate(parsed.module, text, parsed.qualname)
    except SyntaxError as error:
        why = "a merge that is not finished" if _is_of_merge(error.text or "") else error.msg
        line = "" if error.lineno is None else f", line {error.lineno}"
        raise SyntaxError(f"{why} ({parsed.module}{line})") from error


def _is_of_merge(line: str) -> bool:
    return line.startswith(("<<<<<<< ", "||||||| ", "=======", ">>>>>>> "))
