"""What a patch is going to change, made ready before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType

from . import compilation, tree_edits
from .definitions import Definition
from .edits import Add, Edit, Requires, Target, changes_code
from .errors import ForeignPatchError, TargetError
from .fingerprint import FunctionTree
from .line_numbers import File, file_of
from .model import Patch, Variant
from .places import Addition, Chain, Change, CodeChange, Condition, inherited_from, owner_of
from .sources import ABSENT, namespace_of, read_source
from .verdicts import find_definition

#: Gives the change of another patch that is in force on a function.
OnTop = Callable[[FunctionType], "CodeChange | None"]


@dataclass(frozen=True)
class Plan:
    """The changes of a patch, in order, and what it relies on besides."""

    changes: list[Change]
    conditions: list[Condition]


def plan(patch: Patch, variant: Variant, on_top: OnTop) -> Plan:
    """The changes and the conditions of the variant, with nothing changed yet.

    Raises ``TargetError`` or ``RewriteError`` when a change cannot be made, and
    ``ForeignPatchError`` when what runs is not compiled from the source, also that of a condition.
    """
    edits: dict[str, list[Edit]] = {}
    for edit in variant.edits:
        edits.setdefault(edit.target, []).append(edit)
    result = Plan([], [])
    for target, group in edits.items():
        made = [edit for edit in group if changes_code(edit)]
        if made:
            result.changes.append(_change(patch, Target.parse(target), made, on_top))
        else:
            result.conditions.append(prove(target, on_top))
    return result


def prove(dotted: str, on_top: OnTop, *, wrapped: bool = False) -> Condition:
    """What runs as ``dotted``, which has to be compiled from its source, or to be code of ours.

    Raises ``ForeignPatchError`` when it is not, or, unless it may be ``wrapped``, when something is
    around it that the source does not put there.
    """
    target = Target.parse(dotted)
    owner = owner_of(target)
    value = namespace_of(owner).get(target.name, ABSENT)
    definition = find_definition(dotted, read_source)
    if definition is None or value is ABSENT:
        raise ForeignPatchError(f"{dotted} is not defined there{inherited_from(target)}")
    ours = (item for item in compilation.functions_below(value) if _is_ours(item, target, on_top))
    function = next(ours, None) or compilation.raw_function(definition, value)
    if not wrapped:
        compilation.check_decorators(definition, value, function, owner)
    below = on_top(function)
    released = below.released if below else function.__code__
    return Condition(target, owner, value, function, released)


def _is_ours(function: FunctionType, target: Target, on_top: OnTop) -> bool:
    change = on_top(function)
    return change is not None and change.target == target and change.is_made


def _change(patch: Patch, target: Target, edits: list[Edit], on_top: OnTop) -> Change:
    if isinstance(edits[0], Add):
        return _addition(edits[0], target)
    original = find_definition(str(target), read_source)
    if original is not None and not compilation.is_known(original):
        _ = original.node  # to compile this takes less time than to parse the text once more
    found = prove(str(target), on_top)
    assert original is not None  # it was proved
    below, function = on_top(found.function), found.function
    changes = tuple(edit for edit in edits if not isinstance(edit, (Add, Requires)))
    if len(changes) != len(edits):
        raise TargetError(f"{target}: an addition and an edit of one target")
    chain: Chain = (*(below.chain if below else ()), (patch.id, changes))
    file = file_of(function.__code__.co_filename, read_source(original.module) or "")
    code, tree = file.codes.get((original.qualname, chain)), None
    if code is None:
        tree = edited_tree(original, chain, file, below.tree if below else None)
        code = compilation.edited_code(original, tree, function)
        file.codes[original.qualname, chain] = code
    file.show()
    return CodeChange(**vars(found), old=function.__code__, new=code, chain=chain, tree=tree)


def edited_tree(
    original: Definition, chain: Chain, file: File, below: FunctionTree | None = None
) -> FunctionTree:
    """The tree of the original after all edits of the chain.

    ``below`` is the tree after those of all patches but the last one, where somebody has it.
    """
    if not chain:
        return original.node
    id, edits = chain[-1]
    tree = below or edited_tree(original, chain[:-1], file)
    return tree_edits.edited(original, tree, edits, file, f"megatron_patch {id}")


def _addition(edit: Add, target: Target) -> Addition:
    owner = owner_of(target)
    if target.name in namespace_of(owner):
        raise TargetError(f"{edit.target}: the name is taken; expected it to be free")
    return Addition(target, owner, compilation.added_object(edit, target, owner))
