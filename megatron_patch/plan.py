"""What a patch is going to change, made ready before anything is changed."""

from __future__ import annotations
import __future__

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from . import compilation, rewrite
from .errors import TargetError
from .fingerprint import Definition
from .judge import find_definition
from .model import Add, Edit, Family, Patch, Target, is_condition
from .sources import read_source

ABSENT = object()


@dataclass
class Change:
    """One attribute that a patch has set: ``owner.name`` was ``old`` and is ``new``."""

    owner: Any
    name: str
    old: Any
    new: Any
    target: str
    definition: Definition | None

    @property
    def live(self) -> Any:
        """What is there now, in the owner's own namespace."""
        return vars(self.owner).get(self.name, ABSENT)

    def set(self, value: Any) -> None:
        """Put ``value`` there, or nothing for ``ABSENT``."""
        if value is ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)


#: Gives the change of another patch that is in force on ``owner.name``.
Below = Callable[[Any, str], "Change | None"]


def plan(patch: Patch, family: Family, on_top: Below) -> list[Change]:
    """The changes of the family, in order, with nothing changed yet.

    Raises ``TargetError`` or ``RewriteError`` when one of them cannot be made.
    """
    edits: dict[str, list[Edit]] = {}
    for edit in family.edits:
        if not is_condition(edit):
            edits.setdefault(edit.target, []).append(edit)
    return [_change(patch, target, group, on_top) for target, group in edits.items()]


def _change(patch: Patch, dotted: str, edits: list[Edit], on_top: Below) -> Change:
    target = Target.parse(dotted)
    owner = owner_of(target)
    if isinstance(edits[0], Add):
        return _addition(edits[0], target, owner)
    value = vars(owner).get(target.name, ABSENT)
    below = on_top(owner, target.name)
    original = below.definition if below else find_definition(dotted, read_source)
    if original is None or value is ABSENT:
        raise TargetError(f"{dotted} is not defined there{inherited_from(target)}")
    raw = compilation.raw_function(original, value)
    edited = original
    for edit in edits:
        if isinstance(edit, Add):
            raise TargetError(f"{dotted}: an addition and an edit of one target")
        edited = rewrite.edited(edited, edit)
    ids = (*getattr(raw, "__megatron_patch__", ()), patch.id)
    function = compilation.build_function(edited, raw, owner, "megatron_patch " + ",".join(ids))
    function.__dict__["__megatron_patch__"] = ids
    new = compilation.rebuild(value, raw, function, edited, owner)
    return Change(owner, target.name, value, new, dotted, edited)


def owner_of(target: Target) -> Any:
    """The module or the class around the target. Raises ``TargetError`` if that is not there."""
    owner = _find_owner(target)
    if owner is None:
        raise TargetError(f"{target}: {target.scope!r} is not a class of {target.module}")
    return owner


def _find_owner(target: Target) -> Any:
    owner: Any = sys.modules[target.module]
    for name in filter(None, target.scope.split(".")):
        owner = vars(owner).get(name)
        if not isinstance(owner, type):
            return None
    return owner


def inherited_from(target: Target) -> str:
    """Where a class that lacks the target inherits it from, as the end of a sentence."""
    owner = _find_owner(target)
    lacks = isinstance(owner, type) and target.name not in vars(owner)
    for base in owner.__mro__[1:] if lacks else ():
        if target.name in vars(base):
            return f"; it is inherited: patch {base.__module__}:{base.__qualname__}.{target.name}"
    return ""


def _addition(edit: Add, target: Target, owner: Any) -> Change:
    if target.name in vars(owner):
        raise TargetError(f"{edit.target}: the name is taken; expected it to be free")
    namespace: dict[str, Any] = {}
    # Annotations stay text: whether their names exist in the target module does not matter.
    flags = __future__.annotations.compiler_flag
    code = compile(edit.source, f"<megatron_patch {target}>", "exec", flags, dont_inherit=True)
    exec(code, vars(sys.modules[target.module]), namespace)
    value = namespace[target.name]
    if isinstance(value, (FunctionType, type)):
        value.__qualname__ = target.qualname
    return Change(owner, target.name, ABSENT, value, edit.target, None)
