"""The names that edits take from the module that they are made in.

What a module imports is no part of a function's digest. So the same function may stand in a module
that does not have a name which the edit of it uses, and would raise ``NameError`` there.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator
from functools import lru_cache

from . import definitions, recognising
from .definitions import Definition
from .edits import METAVARIABLE, Add, Before, Edit, Replace, Requires, Substitute, Target, source_of
from .fingerprint import FunctionNode
from .model import Variant
from .outlines import outline_of
from .verdicts import Finder, Reader


def lacking(variant: Variant, find: Finder, read: Reader) -> list[str]:
    """The names, as ``module:name``, that edits of ``variant`` use and their module does not have.

    The files of the pinned releases are not looked into: that they have all names is tested.
    Raises ``SyntaxError`` when the text of a module does not parse.
    """
    there: dict[str, frozenset[str]] = {}
    for module in dict.fromkeys(Target.parse(edit.target).module for edit in variant.edits):
        text = read(module)
        if text is not None and outline_of(text) is None:
            there[module] = names_in(text) | _added_to(module, variant)
    found: dict[str, None] = {}
    for edit in variant.edits:
        module = Target.parse(edit.target).module
        if module in there and not isinstance(edit, Requires):
            missing = used_by(edit) - there[module]
            # What is left are mostly locals of the target.
            for name in sorted(missing - _bound_for(edit, variant, find, read) if missing else ()):
                found[f"{module}:{name}"] = None
    return list(found)


@lru_cache(maxsize=16)
def names_in(text: str) -> frozenset[str]:
    """The names that code in a module with this text finds outside of functions and classes."""
    return frozenset(_bound_at_run_time(definitions.body_of(text))).union(
        vars(builtins), ("__file__", "__name__")
    )


def forget() -> None:
    """Keep no texts of modules, and no trees."""
    names_in.cache_clear()
    _names_of.cache_clear()


def _bound_at_run_time(body: Iterable[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _bound_at_run_time(node.orelse)
        else:
            yield from definitions.bound_names([node])


def _added_to(module: str, variant: Variant) -> frozenset[str]:
    """The names that the variant itself adds to a module."""
    targets = (Target.parse(edit.target) for edit in variant.edits if isinstance(edit, Add))
    return frozenset(t.name for t in targets if t.module == module and not t.scope)


def _bound_for(edit: Edit, variant: Variant, find: Finder, read: Reader) -> set[str]:
    """The names that an edit finds where it is made, but for those of the module."""
    if isinstance(edit, Add):
        return _of_class(edit, read)
    definition = find(edit.target)
    used, bound = (set[str](), set[str]()) if definition is None else _names_of(definition)
    if isinstance(edit, Replace):  # the target's locals are no longer there
        return used - bound
    beside = (e for e in variant.edits if e.target == edit.target)
    others = (_names(_code(e))[1] for e in beside if isinstance(e, (Before, Substitute)))
    return used.union(bound, *others)


def _of_class(edit: Add, read: Reader) -> set[str]:
    """The names of the class around an addition that its decorators and defaults see."""
    function = _code(edit)[0]
    if not Target.parse(edit.target).scope or not isinstance(function, FunctionNode):
        return set()
    defaults = [*function.args.defaults, *filter(None, function.args.kw_defaults)]
    seen = _names([*function.decorator_list, *defaults])[0] - _names(function.body)[0]
    return seen.intersection(definitions.bound_names(recognising.body_around(edit, read)))


@lru_cache(maxsize=1024)
def used_by(edit: Edit) -> frozenset[str]:
    """The names that an edit uses and neither binds nor looks for, without metavariables."""
    used, bound = _names(_code(edit))
    if isinstance(edit, Substitute):
        bound = bound.union(*_names(definitions.statements_of(edit.find)))
    return frozenset(name for name in used - bound if not name.startswith(METAVARIABLE))


def _code(edit: Edit) -> list[ast.stmt]:
    if isinstance(edit, Substitute):
        return definitions.statements_of(edit.put)
    if isinstance(edit, (Before, Replace)):
        return definitions.statements_of(
            source_of(edit.hook if isinstance(edit, Before) else edit.function)
        )
    assert isinstance(edit, Add)
    return definitions.statements_of(edit.source)


@lru_cache(maxsize=64)  # several edits, and patches, ask for the same one
def _names_of(definition: Definition) -> tuple[set[str], set[str]]:
    """The names that a definition reads, and those that it binds. Not to be changed."""
    return _names([definition.node])


def _names(body: Iterable[ast.AST]) -> tuple[set[str], set[str]]:
    """The names that code reads, and those that it binds, in whatever scope of its own.

    Annotations are left out: ours stay text.
    """
    used: set[str] = set()
    bound: set[str] = set()
    rest = list(body)
    while rest:
        node = rest.pop()
        skipped: object = None
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
            continue
        elif isinstance(node, (*FunctionNode, ast.ClassDef)):
            bound.add(node.name)
            skipped = getattr(node, "returns", None)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            skipped = node.annotation
        rest.extend(child for child in ast.iter_child_nodes(node) if child is not skipped)
    return used, bound
