"""Edit a definition's source text by its syntax tree, and compile the result in place.

Every text edit is proved by the tree: after the edit, the parsed text must equal the original
tree with the intended nodes exchanged. Formatting and comments elsewhere stay byte for byte.
"""

from __future__ import annotations

import ast
import copy
import inspect
import linecache
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace as dataclass_replace
from functools import reduce
from types import CellType, CodeType, FunctionType
from typing import Any, cast

from .errors import ForeignPatchError, RewriteError
from .fingerprint import Definition, canonical
from .model import Before, Replace, Substitute, source_of


def edited(definition: Definition, edit: Replace | Before | Substitute) -> Definition:
    """The definition after one edit. Raises ``RewriteError`` when the edit does not fit."""
    if isinstance(edit, Replace):
        return _replaced(definition, edit)
    if isinstance(edit, Before):
        return _prefixed(definition, edit)
    return _substituted(definition, edit)


def _fail(definition: Definition, why: str) -> RewriteError:
    return RewriteError(f"{definition.module}:{definition.qualname}: {why}")


def _indent(text: str, prefix: str) -> str:
    return "".join(prefix + line if line.strip() else line for line in text.splitlines(True))


def _margin(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _checked(definition: Definition, segment: str, expected: ast.AST) -> Definition:
    """The definition with a new segment, if that parses to the expected tree."""
    result = dataclass_replace(definition, segment=segment)
    try:
        same = canonical(result.node) == canonical(expected)
    except SyntaxError as error:
        raise _fail(definition, f"the edited source does not parse: {error}") from error
    if not same:
        raise _fail(definition, "the edited text is not the intended edit of the syntax tree")
    return result


def _replaced(definition: Definition, edit: Replace) -> Definition:
    old, text = definition.node, source_of(edit.function)
    new = ast.parse(text).body[0]
    if not isinstance(new, type(old)):
        raise _fail(definition, f"the replacement is a {type(new).__name__}")
    if canonical(_bare(new.args)) != canonical(_bare(old.args)):
        raise _fail(
            definition,
            f"the signature is ({ast.unparse(old.args)}); "
            f"the replacement has ({ast.unparse(new.args)})",
        )
    expected = copy.deepcopy(new)
    expected.name, expected.decorator_list = old.name, old.decorator_list
    lines = definition.segment.splitlines(True)
    head = old.lineno - definition.first_line
    text = "".join(text.splitlines(True)[new.lineno - 1 :])
    text = text.replace(f"def {new.name}(", f"def {old.name}(", 1)
    return _checked(
        definition, "".join(lines[:head]) + _indent(text, _margin(lines[head])), expected
    )


def _bare(arguments: ast.arguments) -> ast.arguments:
    arguments = copy.deepcopy(arguments)
    for node in ast.walk(arguments):
        if isinstance(node, ast.arg):
            node.annotation = None
    return arguments


def _prefixed(definition: Definition, edit: Before) -> Definition:
    node = definition.node
    first_parameter = [a.arg for a in (*node.args.posonlyargs, *node.args.args)][:1]
    hook_parameters = list(edit.hook.__code__.co_varnames[: edit.hook.__code__.co_argcount])
    if hook_parameters != first_parameter:
        raise _fail(
            definition, f"the hook takes {hook_parameters}; the target's first is {first_parameter}"
        )
    skip = 1 if ast.get_docstring(node, clean=False) is not None else 0
    expected = definition.parse()
    expected.body[skip:skip] = ast.parse(edit.statements).body
    if len(node.body) == skip:
        raise _fail(definition, "there is no statement to put the hook in front of")
    lines = definition.segment.splitlines(True)
    row = node.body[skip].lineno - definition.first_line
    column = len(lines[row].encode()[: node.body[skip].col_offset].decode())
    before, after = lines[row][:column], lines[row][column:]
    if before.strip():  # `def f(self): return 1`: open a suite of its own
        margin = _margin(lines[row]) + "    "
        lines[row] = before.rstrip() + "\n" + _indent(edit.statements, margin) + margin + after
    else:
        while lines[row - 1].lstrip().startswith("#"):
            row -= 1  # a comment above the first statement belongs to that statement
        lines.insert(row, _indent(edit.statements, before))
    return _checked(definition, "".join(lines), expected)


def _substituted(definition: Definition, edit: Substitute) -> Definition:
    find, put = ast.parse(edit.find).body, ast.parse(edit.put).body
    single = find[0] if len(find) == 1 else None
    if isinstance(single, ast.Expr):
        if len(put) != 1 or not isinstance(put[0], ast.Expr):
            raise _fail(definition, f"`{edit.find}` is an expression; so must be `{edit.put}`")
        return _substituted_expression(definition, edit, single.value, put[0].value)
    wanted = canonical(find)
    places = [
        (body, index)
        for body in _bodies(definition.node)
        for index in range(len(body) - len(find) + 1)
        if canonical(body[index : index + len(find)]) == wanted
    ]
    _once(definition, edit.find, len(places))
    body, index = places[0]
    nodes = body[index : index + len(find)]
    lines = definition.segment.splitlines(True)
    start, end = _span(definition, lines, nodes[0], nodes[-1])
    margin = definition.segment[definition.segment.rfind("\n", 0, start) + 1 : start]
    if margin.strip():
        raise _fail(definition, f"`{edit.find}` shares its line with other code")
    text = _indent(edit.put.strip("\n"), margin)[len(margin) :] if put else ""
    segment = definition.segment[:start] + text + definition.segment[end:]
    if not put:
        if len(body) == len(find):
            raise _fail(definition, f"`{edit.find}` is all of its block; put `pass` in its place")
        segment = definition.segment[: start - len(margin)] + definition.segment[end:].lstrip("\n")
    # The same edit on the tree: the matched list is found again by its position.
    expected = definition.parse()
    which = next(n for n, candidate in enumerate(_bodies(definition.node)) if candidate is body)
    list(_bodies(expected))[which][index : index + len(find)] = put
    return _checked(definition, segment, expected)


def _substituted_expression(
    definition: Definition, edit: Substitute, find: ast.expr, put: ast.expr
) -> Definition:
    wanted = canonical(find)
    places = [n for n in ast.walk(definition.node) if canonical(n) == wanted]
    _once(definition, edit.find, len(places))

    class Exchange(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return put if canonical(node) == wanted else self.generic_visit(node)

    expected = Exchange().visit(definition.parse())
    lines = definition.segment.splitlines(True)
    start, end = _span(definition, lines, places[0], places[0])
    before, after = definition.segment[:start], definition.segment[end:]
    try:
        return _checked(definition, before + edit.put.strip() + after, expected)
    except RewriteError:
        # Operators of the surroundings may bind tighter than those of the new expression.
        return _checked(definition, before + "(" + edit.put.strip() + ")" + after, expected)


def _bodies(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for child in ast.walk(node):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(child, name, None)
            if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
                yield body


def _once(definition: Definition, find: str, count: int) -> None:
    if count != 1:
        found = "not found" if count == 0 else f"found {count} times"
        raise _fail(definition, f"expected `{find.strip()}` exactly once; {found}")


def _span(definition: Definition, lines: list[str], first: Any, last: Any) -> tuple[int, int]:
    """Offsets in the segment's characters of two nodes' start and end."""

    def offset(line: int, column: int) -> int:
        row = line - definition.first_line
        return sum(map(len, lines[:row])) + len(lines[row].encode()[:column].decode())

    return offset(first.lineno, first.col_offset), offset(last.end_lineno, last.end_col_offset)


def compile_code(definition: Definition, filename: str) -> CodeType:
    """Compile a definition as its own module would: same classes around it, same lines."""
    *scopes, name = definition.qualname.split(".")
    body: ast.stmt = definition.parse()
    for scope in reversed(scopes):
        shell = cast(ast.ClassDef, ast.parse(f"class {scope}: pass").body[0])
        shell.body = [body]
        body = shell
    # The compiler emits other code for a call on an imported name than for one on an object.
    names = [ast.alias(name) for name in definition.imported_names]
    imports = [ast.Import(names)] if names else []
    module = ast.fix_missing_locations(ast.Module(body=[*imports, body], type_ignores=[]))
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
    where = getattr(value, "__module__", None) or type(value).__module__
    name = getattr(value, "__qualname__", type(value).__qualname__)
    raise ForeignPatchError(
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
        raise _fail(definition, f"the edit needs names of an outer function: {missing}")
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
    result = _rebuild(value, raw, new, definition.node.decorator_list, owner)
    set_name = getattr(type(result), "__set_name__", None)
    if set_name is not None:  # what a class body does for cached_property and its like
        set_name(result, owner, new.__name__)
    return result


def _rebuild(
    value: Any, raw: FunctionType, new: FunctionType, decorators: list[ast.expr], owner: Any
) -> Any:
    if value is raw:
        return new
    if isinstance(value, (staticmethod, classmethod)):
        return type(value)(_rebuild(value.__func__, raw, new, decorators[1:], owner))
    if isinstance(value, property):
        # Only a getter comes here: a name that is defined again for its setter is ambiguous.
        return value.getter(_rebuild(value.fget, raw, new, decorators[1:], owner))

    def evaluate(node: ast.expr) -> Callable[[Any], Any]:
        code = compile(ast.Expression(node), "<decorator>", "eval", dont_inherit=True)
        return cast(Callable[[Any], Any], eval(code, raw.__globals__, dict(vars(owner))))

    return reduce(lambda inner, node: evaluate(node)(inner), reversed(decorators), cast(Any, new))
