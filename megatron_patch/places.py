"""Where a target is in this process, what is there, and what a patch changes of it.

An edit changes the code of the very function that Megatron made, and puts no other object in its
place. So whoever holds the function runs the edited code: a module that imported it by name, a
class that took it as an attribute of its own, a wrapper around it, an object with a bound method.
It is pickled as before, and nothing that others put around it is removed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, Union

from .edits import Before, Replace, Substitute, Target
from .errors import ForeignPatchError
from .fingerprint import FunctionTree
from .sources import ABSENT, namespace_of, read_source
from .verdicts import find_definition

#: The ids of patches, each with its edits of one function, in the order in which they are made.
Chain = tuple[tuple[str, tuple[Union[Replace, Before, Substitute], ...]], ...]

#: An attribute of a function whose code is ours: the ids of the patches in it.
MARK = "__megatron_patch__"


def find_owner(target: Target) -> Any:
    """The module or the class around the target, ``None`` if there is no such class."""
    owner: Any = sys.modules.get(target.module)
    for name in filter(None, target.scope.split(".")):
        owner = namespace_of(owner).get(name)
        # Not `isinstance`: a proxy says that it is a class.
        if not issubclass(type(owner), type):
            return None
    return owner


def owner_of(target: Target) -> Any:
    """The module or the class around the target, if it is the one that the source defines.

    Raises ``ForeignPatchError`` when the source's class is not there, or another one is.
    """
    owner = find_owner(target)
    if owner is None:
        raise ForeignPatchError(f"{target}: {target.scope!r} is not a class of {target.module}")
    if target.scope and (owner.__module__, owner.__qualname__) != (target.module, target.scope):
        raise ForeignPatchError(
            f"{target}: {target.scope!r} is {owner.__module__}.{owner.__qualname__}, "
            "by which somebody replaced the class"
        )
    return owner


def inherited_from(target: Target) -> str:
    """Where a class that lacks the target inherits it from, as the end of a sentence.

    What a class has from Python's own classes is nothing to patch.
    """
    owner = find_owner(target)
    lacks = owner is not None and target.scope and target.name not in vars(owner)
    for base in owner.__mro__[1:] if lacks else ():
        if target.name in vars(base) and base.__module__ != "builtins":
            return f"; it is inherited: patch {base.__module__}:{base.__qualname__}.{target.name}"
    return ""


def was_left_out(target: Target) -> bool:
    """Whether the module was imported without the target, a function that it has in a ``try``."""
    module = sys.modules.get(target.module)
    if module is None or target.scope or target.name in namespace_of(module):
        return False
    definition = find_definition(str(target), read_source)
    return definition is not None and definition.segment[:1].isspace()


@dataclass
class Condition:
    """A target that a patch relies on as it was judged, and does not change.

    ``value`` is what ``owner`` has under the target's name: the function, or a descriptor or a
    decorator around it. ``released`` is the function's code without any patch of ours.
    """

    target: Target
    owner: Any
    value: Any
    function: FunctionType
    released: CodeType

    @property
    def is_there(self) -> bool:
        """Whether the target's name leads to what was judged, whatever its code is now."""
        owner = find_owner(self.target)
        return owner is self.owner and vars(owner).get(self.target.name, ABSENT) is self.value


@dataclass
class CodeChange(Condition):
    """Other code for the function of a target: ``old`` was there and ``new`` is to be."""

    old: CodeType
    new: CodeType
    chain: Chain  #: what ``new`` has been made with, the last one by this change
    tree: FunctionTree | None  #: what ``new`` was compiled from, while other patches are decided

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the patches in ``new``; the last one made this change."""
        return tuple(id for id, _ in self.chain)

    @property
    def place(self) -> object:
        """Equal for changes that are made on top of each other."""
        return id(self.function)

    @property
    def is_made(self) -> bool:
        """Whether the function has our code."""
        return self.function.__code__ is self.new

    def make(self) -> None:
        """Put our code there."""
        self._set(self.new, self.ids)

    def undo(self) -> None:
        """Put the code back that was there."""
        self._set(self.old, self.ids[:-1])

    def _set(self, code: CodeType, ids: tuple[str, ...]) -> None:
        self.function.__code__ = code
        if ids:
            self.function.__dict__[MARK] = ids
        else:
            self.function.__dict__.pop(MARK, None)


@dataclass
class Addition:
    """A new attribute of a module or a class."""

    target: Target
    owner: Any
    value: Any

    @property
    def place(self) -> object:
        """Equal for changes that are made on top of each other."""
        return (id(self.owner), self.target.name)

    @property
    def is_made(self) -> bool:
        """Whether our object is there."""
        return vars(self.owner).get(self.target.name, ABSENT) is self.value

    is_there = is_made

    def make(self) -> None:
        """Put our object there."""
        setattr(self.owner, self.target.name, self.value)

    def undo(self) -> None:
        """Take our object away."""
        delattr(self.owner, self.target.name)


Change = Union[CodeChange, Addition]
