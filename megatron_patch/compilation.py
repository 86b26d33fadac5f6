"""Compile an edited definition in the place of the original, and prove which code runs now."""

from __future__ import annotations

import ast
import inspect
import linecache
import warnings
from collections.abc import Callable, Iterator
from functools import reduce
from types import CellType, CodeType, FunctionType
from typing import Any, cast

from .errors import ForeignPatchError, RewriteError
from .fingerprint import Definition


def compile_code(definition: Definition, filename: str) -> CodeType:
    """Compile a definition as its own module would: same classes around it, same lines."""
    *scopes, name = definition.qualname.split(".")
    body: ast.stmt = definition.node
    for scope in reversed(scopes):
        shell = cast(ast.ClassDef, ast.parse(f"class {scope}: pass").body[0])
        shell.body = [body]
        body = shell
    # The compiler emits other code for a call on an imported name than for one on an object.
    names = ", ".join(definition.imported_names)
    imports = ast.parse(f"import {names}").body if names else []
    module = ast.Module(body=[*imports, body], type_ignores=[])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # the module's own import had them
        code: CodeType = compile(
            module, filename, "exec", flags=definition.future_flags, dont_inherit=True
        )
    for scope in scopes:
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == scope)
    return next(c for c in _nested(code) if c.co_name == name)


def _nested(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _nested(constant)


def raw_function(definition: Definition, value: object) -> FunctionType:
    """The plain function under ``value`` that is compiled from ``definition``.

    Looks through descriptors and decorators. Raises ``ForeignPatchError`` when there is none:
    then what runs is not what the source says.
    """
    code, seen = compile_code(definition, "<original>"), {0}
    queue = [value]
    while queue:
        item = queue.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, FunctionType):
            if item.__code__ == code:
                return item
            queue.extend(inspect.getclosurevars(item).nonlocals.values())
        for name in ("__wrapped__", "__func__", "fget", "fset", "fdel", "func"):
            # vars-like look-up: a proxy's __getattr__ must not be run on our behalf
            if hasattr(type(item), name) or name in getattr(item, "__dict__", {}):
                queue.append(getattr(item, name))
    raise _foreign(definition, value)


def _foreign(definition: Definition, value: object) -> ForeignPatchError:
    where = getattr(value, "__module__", None) or type(value).__module__
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return ForeignPatchError(
        f"{definition.module}:{definition.qualname} runs {where}.{name}, "
        "which is not compiled from the module's source"
    )


def build_function(
    definition: Definition, raw: FunctionType, owner: Any, label: str
) -> FunctionType:
    """A plain function from the edited definition, in the namespace of ``raw``'s module.

    Defaults, annotations, attributes and closure cells are the original's own objects.
    ``label`` goes into the file name that tracebacks show; ``inspect.getsource`` works on it.
    """
    filename = f"<{label} {definition.module}:{definition.qualname}>"
    code = compile_code(definition, filename)
    cells = dict(zip(raw.__code__.co_freevars, raw.__closure__ or (), strict=True))
    if isinstance(owner, type):
        cells.setdefault("__class__", CellType(owner))
    missing = [name for name in code.co_freevars if name not in cells]
    if missing:
        raise RewriteError(
            f"{definition.module}:{definition.qualname}: "
            f"the edit needs names of an outer function: {missing}"
        )
    closure = tuple(cells[name] for name in code.co_freevars)
    new = FunctionType(code, raw.__globals__, raw.__name__, raw.__defaults__, closure)
    new.__kwdefaults__ = raw.__kwdefaults__
    new.__annotations__ = dict(raw.__annotations__)
    new.__module__, new.__qualname__ = raw.__module__, raw.__qualname__
    new.__dict__.update(raw.__dict__)
    if hasattr(raw, "__type_params__"):
        setattr(new, "__type_params__", raw.__type_params__)
    lines = ["\n"] * (definition.first_line - 1) + definition.segment.splitlines(True)
    linecache.cache[filename] = (len(definition.segment), None, lines, filename)
    return new


def rebuild(
    value: Any, raw: FunctionType, new: FunctionType, definition: Definition, owner: Any
) -> Any:
    """``value`` with ``new`` in the place of ``raw``: descriptors and decorators kept.

    Static methods, class methods and properties are taken apart and put together again;
    other decorators are evaluated again, in the module's and the class's namespaces.
    """
    result = _rebuild(definition, value, raw, new, definition.node.decorator_list, owner)
    set_name = getattr(type(result), "__set_name__", None)
    if set_name is not None:  # what a class body does for cached_property and its like
        set_name(result, owner, new.__name__)
    return result


def _rebuild(
    definition: Definition,
    value: Any,
    raw: FunctionType,
    new: FunctionType,
    decorators: list[ast.expr],
    owner: Any,
) -> Any:
    if value is raw:
        return new
    if isinstance(value, (staticmethod, classmethod)):
        return type(value)(_rebuild(definition, value.__func__, raw, new, decorators[1:], owner))
    if isinstance(value, property):
        # Only a getter comes here: a name that is defined again for its setter is ambiguous.
        return value.getter(_rebuild(definition, value.fget, raw, new, decorators[1:], owner))

    def evaluate(node: ast.expr) -> Callable[[Any], Any]:
        code = compile(ast.Expression(node), "<decorator>", "eval", dont_inherit=True)
        return cast(Callable[[Any], Any], eval(code, raw.__globals__, dict(vars(owner))))

    result = reduce(lambda inner, node: evaluate(node)(inner), reversed(decorators), cast(Any, new))
    if type(result) is not type(value) or _code(result) != _code(value):
        raise _foreign(definition, value)
    return result


def _code(value: object) -> object:
    return getattr(value, "__code__", None)
