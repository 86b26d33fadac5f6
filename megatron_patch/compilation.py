"""Compile an edited definition in the place of the original, and prove which code runs now."""

from __future__ import annotations
import __future__

import ast
import inspect
import linecache
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace as dataclass_replace
from types import CodeType, FunctionType
from typing import Any, cast

from .definitions import Definition, statements_of
from .edits import Add, Target
from .errors import ForeignPatchError
from .segments import failure, margin_of


def compile_code(definition: Definition, filename: str, node: ast.stmt | None = None) -> CodeType:
    """Compile a definition as its own module would: same classes around it, same lines.

    ``node`` is another tree to compile in the place of the definition's own.
    """
    *scopes, name = definition.qualname.split(".")
    source = _text_of(definition) if node is None and not definition.is_parsed else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the module's own import has shown them
        code: CodeType = compile(
            source or _tree_of(definition, definition.node if node is None else node),
            filename,
            "exec",
            flags=definition.future_flags,
            dont_inherit=True,
        )
    for scope in scopes:
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == scope)
    return next(c for c in _nested(code) if c.co_name == name)


def _imports_of(definition: Definition) -> str:
    # The compiler emits other code for a call on an imported name than for one on an object.
    names = ", ".join(definition.imported_names)
    return f"import {names}\n" if names else ""


def _text_of(definition: Definition) -> str | None:
    """A module with the definition alone, in its lines; ``None`` if there is no room above it.

    To compile text takes half the time of parsing it and compiling the tree.
    """
    scopes = definition.qualname.split(".")[:-1]
    if not scopes and definition.segment[:1].isspace():
        return None  # in a `try`
    margin = margin_of(definition.segment)  # tabs, where the file has them
    heads = [f"{margin[:depth]}class {scope}:\n" for depth, scope in enumerate(scopes)]
    above = _imports_of(definition) + "".join(heads)
    rows = definition.first_line - 1 - above.count("\n")
    return None if rows < 0 else "\n" * rows + above + definition.segment


def _tree_of(definition: Definition, body: ast.stmt) -> ast.Module:
    """A module with a tree of the definition alone."""
    for scope in reversed(definition.qualname.split(".")[:-1]):
        shell = cast(ast.ClassDef, ast.parse(f"class {scope}: pass").body[0])
        shell.body = [body]
        body = shell
    return ast.Module(body=[*statements_of(_imports_of(definition)), body], type_ignores=[])


def _nested(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _nested(constant)


def functions_below(value: object) -> Iterator[FunctionType]:
    """The plain functions under ``value``, through descriptors, decorators and wrappers."""
    queue, seen = [value], {0}
    while queue:
        item = queue.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        # Not `isinstance`: a proxy, such as a wrapper of wrapt, says that it is a function.
        if type(item) is FunctionType:
            yield item
            queue.extend(inspect.getclosurevars(item).nonlocals.values())
        for name in ("__wrapped__", "__func__", "fget", "fset", "fdel", "func"):
            # vars-like look-up: a proxy's __getattr__ must not be run on our behalf
            if hasattr(type(item), name) or name in getattr(item, "__dict__", {}):
                queue.append(getattr(item, name))


def raw_function(definition: Definition, value: object) -> FunctionType:
    """The plain function under ``value`` that is compiled from ``definition``.

    Raises ``ForeignPatchError`` when there is none: then what runs is not what the source says.
    """
    code = _original_code(definition)
    for function in functions_below(value):
        if function.__code__ == code:
            return function
    raise _foreign(definition, value)


_originals: dict[Definition, CodeType] = {}


def is_known(definition: Definition) -> bool:
    """Whether it is known to what the definition compiles."""
    return definition in _originals


def _original_code(definition: Definition) -> CodeType:
    """The code of a definition, which is asked for again whenever a state is proved again."""
    found = _originals.get(definition)
    if found is None:
        found = compile_code(definition, "<original>")
        # A key of its own, for the tree that this one may have.
        _originals[dataclass_replace(definition, found=None)] = found
    return found


def _foreign(definition: Definition, value: object) -> ForeignPatchError:
    where = getattr(value, "__module__", None) or type(value).__module__
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return ForeignPatchError(
        f"{definition.module}:{definition.qualname} runs {where}.{name}, "
        "which is not compiled from the module's source"
    )


def check_decorators(
    definition: Definition, value: Any, function: FunctionType, owner: Any
) -> None:
    """Raise ``ForeignPatchError`` unless ``value`` is ``function`` as the source decorates it.

    Static methods, class methods and properties are looked into; other decorators are evaluated
    again, in the module's and the class's namespaces, and compared. One that raises says nothing
    of what it made, and so counts as another.
    """
    decorators = definition.node.decorator_list
    while value is not function:
        kind = type(value)
        if kind in (staticmethod, classmethod):
            value, decorators = value.__func__, decorators[1:]
        elif kind is property:
            # Only a getter comes here: a name that is defined again for its setter is ambiguous.
            value, decorators = value.fget, decorators[1:]
        else:
            break

    def evaluate(node: ast.expr) -> Callable[[Any], Any]:
        code = compile(ast.Expression(node), "<decorator>", "eval", dont_inherit=True)
        return cast(Callable[[Any], Any], eval(code, function.__globals__, dict(vars(owner))))

    if value is not function:
        # On a copy: a decorator may set attributes of the function.
        twin = FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        twin.__dict__.update(function.__dict__)
        made: Any = twin
        for node in reversed(decorators):
            try:
                made = evaluate(node)(made)
            except Exception as error:  # one that may be called once, such as one that registers
                raise _foreign(definition, value) from error
        if type(made) is not type(value) or _code(made) != _code(value):
            raise _foreign(definition, value)


def _code(value: object) -> object:
    return getattr(value, "__code__", None)


def edited_code(definition: Definition, tree: ast.stmt, function: FunctionType) -> CodeType:
    """The code of an edited tree for ``function``, which is compiled from the definition.

    Its file is that of the definition. Raises ``RewriteError`` when it cannot be code of that
    function.
    """
    try:
        code = compile_code(definition, function.__code__.co_filename, tree)
    except (SyntaxError, ValueError) as error:  # ValueError: of a tree that no text parses to
        raise failure(definition, f"the edited source does not compile: {error}") from error
    if code.co_freevars != function.__code__.co_freevars:
        raise failure(
            definition,
            f"the edit needs the names {code.co_freevars} of an outer function or class; "
            f"expected {function.__code__.co_freevars}",
        )
    return code


def added_object(edit: Add, target: Target, owner: Any) -> Any:
    """The object of an addition to ``owner``, made as if it had been written there.

    A function or a class has the file and the lines of its definition, which is ours.
    """
    text, filename, first = edit.source, f"<megatron_patch {target}>", 1
    if not isinstance(edit.definition, str):
        filename = inspect.getsourcefile(edit.definition) or filename
        first = inspect.getsourcelines(edit.definition)[1]
    scopes = target.scope.split(".") if target.scope else []
    for scope in reversed(scopes):
        text, first = f"class {scope}:\n" + textwrap.indent(text, "    "), first - 1
    if isinstance(edit.definition, str):
        first = 1
        linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    # Annotations stay text: whether their names exist in the target module does not matter.
    flags = __future__.annotations.compiler_flag
    code = compile("\n" * (first - 1) + text, filename, "exec", flags, dont_inherit=True)
    namespace: dict[str, Any] = {}
    for scope in scopes:
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == scope)
        # Names that are seen where a default or a decorator is evaluated.
        namespace = dict(vars(owner))
    exec(code, vars(sys.modules[target.module]), namespace)
    if "__classcell__" in namespace:  # for a super() without arguments
        namespace["__classcell__"].cell_contents = owner
    value = namespace[target.name]
    plain = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    if isinstance(plain, (FunctionType, type)):
        plain.__qualname__ = target.qualname
    return value
