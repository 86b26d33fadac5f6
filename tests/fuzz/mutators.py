"""Mutators: each lists the edits of one sort that can be made in a function's source text.

Those in ``CHANGING`` give another syntax tree, apart from a few that happen to give an equal one.
Those in ``NEUTRAL`` never do. All results parse; whether they compile does not matter here.
"""

from __future__ import annotations

import ast
import copy
import tokenize
from collections.abc import Callable, Iterator
from itertools import pairwise
from textwrap import indent

from .code import FUNCTIONS, Code, Edit, Token, has_docstring

Mutator = Callable[[Code], Iterator[Edit]]

# ------------------------------------------------------------------ statements


def delete_statement(code: Code) -> Iterator[Edit]:
    for owner, block in code.blocks():
        for node in block:
            span = code.lines(node)
            is_alone = len(block) == 1 and not has_docstring(owner)
            if span and not (is_alone and isinstance(node, ast.Pass)):
                yield Edit(*span, code.margin(node) + "pass\n" if is_alone else "")


def duplicate_statement(code: Code) -> Iterator[Edit]:
    for _, block in code.blocks():
        for span in filter(None, map(code.lines, block)):
            yield Edit(span[1], span[1], code.text[slice(*span)])


def swap_statements(code: Code) -> Iterator[Edit]:
    for _, block in code.blocks():
        for one, other in pairwise(block):
            first, second = code.lines(one), code.lines(other)
            if first and second and ast.dump(one) != ast.dump(other):
                between = code.text[first[1] : second[0]]
                swapped = code.text[slice(*second)] + between + code.text[slice(*first)]
                yield Edit(first[0], second[1], swapped)


def insert_statement(code: Code) -> Iterator[Edit]:
    for _, block in code.blocks():
        for node in block:
            if span := code.lines(node):
                yield Edit(span[0], span[0], code.margin(node) + "pass\n")


def make_generator(code: Code) -> Iterator[Edit]:
    """Make the function, or one in it, a generator."""
    for _, block in code.blocks():
        for node in block:
            if span := code.lines(node):
                yield Edit(span[0], span[0], code.margin(node) + "yield\n")


def guard_statement(code: Code) -> Iterator[Edit]:
    for _, block in code.blocks():
        for node in block:
            if span := code.lines(node):
                text = "if True:\n" + indent(ast.unparse(node), "    ") + "\n"
                yield Edit(*span, indent(text, code.margin(node)))


def move_statement_out(code: Code) -> Iterator[Edit]:
    """Move the last statement of a block behind the ``if``, ``for``, ``with`` ... around it."""
    for owner, block in code.blocks():
        if not isinstance(owner, ast.stmt) or owner is code.node or not block:
            continue
        inner, outer = code.lines(block[-1]), code.lines(owner)
        if inner and outer:
            kept = code.margin(block[-1]) + "pass\n" if len(block) == 1 else ""
            moved = indent(ast.unparse(block[-1]) + "\n", code.margin(owner))
            yield Edit(inner[0], outer[1], kept + code.text[inner[1] : outer[1]] + moved)


def change_jump(code: Code) -> Iterator[Edit]:
    for node in code.nodes():
        if isinstance(node, ast.Return):
            yield code.replaced(node, "return" if node.value else "return 0")
        elif isinstance(node, (ast.Break, ast.Continue)):
            yield code.replaced(node, "continue" if isinstance(node, ast.Break) else "break")


# ------------------------------------------------------------------ expressions


def negate_condition(code: Code) -> Iterator[Edit]:
    for node in code.nodes():
        tests = [node.test] if isinstance(node, (ast.If, ast.While, ast.IfExp, ast.Assert)) else []
        for test in [*tests, *getattr(node, "ifs", ())]:
            yield code.replaced(test, f"(not ({code.text[code.start(test) : code.end(test)]}))")


def rename(code: Code) -> Iterator[Edit]:
    """Rename one variable, attribute, parameter, keyword or import, in one place."""
    for node in code.nodes():
        if isinstance(node, (ast.Name, ast.Attribute)):
            end = code.end(node)
        elif isinstance(node, (ast.arg, ast.keyword)) and node.arg:
            end = code.start(node) + len(node.arg)
        elif isinstance(node, (ast.Global, ast.Nonlocal)) or (
            isinstance(node, ast.alias) and node.name != "*"
        ):
            end = code.end(node)
        else:
            continue
        yield Edit(end, end, "_")


def change_constant(code: Code) -> Iterator[Edit]:
    """Change a constant to another value, and to an equal one of another type."""
    docstrings = code.docstrings()
    for node in code.nodes():
        if isinstance(node, ast.JoinedStr):
            yield Edit(code.end(node), code.end(node), ' "x"')
        elif isinstance(node, ast.Constant) and node not in docstrings:
            for other in _others(node.value):
                yield code.replaced(node, f"({other!r})" if other == -1 else repr(other))


def _others(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value, int(value), None]
    if isinstance(value, int):
        return [value + 1, -1, float(value), complex(0, value), str(value)]
    if isinstance(value, float):
        return [value + 1, int(value)]
    if isinstance(value, str):
        return [value + "x", value[:-1] + "'\"\\", value.encode(), " " + value]
    if isinstance(value, bytes):
        return [value + b"x", value.decode("latin-1")]
    return [False, 0, ""]


OTHER: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub, ast.BitOr),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.MatMult, ast.Pow),
    ast.Div: (ast.FloorDiv,),
    ast.FloorDiv: (ast.Div, ast.Mod),
    ast.Mod: (ast.FloorDiv,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd, ast.BitXor),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Eq: (ast.NotEq, ast.Is),
    ast.NotEq: (ast.Eq, ast.Gt),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt,),
    ast.Gt: (ast.GtE, ast.NotEq),
    ast.GtE: (ast.Gt,),
    ast.Is: (ast.IsNot, ast.Eq),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Not: (ast.Invert,),
    ast.USub: (ast.UAdd,),
    ast.UAdd: (ast.USub,),
    ast.Invert: (ast.USub,),
}


def change_operator(code: Code) -> Iterator[Edit]:
    for node in code.nodes():
        if isinstance(node, (ast.BinOp, ast.BoolOp, ast.UnaryOp, ast.AugAssign)):
            for kind in OTHER.get(type(node.op), ()):
                yield _instead(code, node, op=kind())
        elif isinstance(node, ast.Compare):
            for kind in OTHER[type(node.ops[0])]:
                yield _instead(code, node, ops=[kind(), *node.ops[1:]])


def swap_operands(code: Code) -> Iterator[Edit]:
    for node in code.nodes():
        if isinstance(node, ast.BinOp):
            yield _instead(code, node, left=node.right, right=node.left)
        elif isinstance(node, ast.BoolOp):
            yield _instead(code, node, values=node.values[::-1])
        elif isinstance(node, ast.IfExp):
            yield _instead(code, node, body=node.orelse, orelse=node.body)


def drop_operator(code: Code) -> Iterator[Edit]:
    for node in code.nodes():
        if isinstance(node, ast.UnaryOp):
            yield code.replaced(node, f"({ast.unparse(node.operand)})")
        elif isinstance(node, ast.Await):
            yield code.replaced(node, f"({ast.unparse(node.value)})")


def change_call(code: Code) -> Iterator[Edit]:
    """Leave out one argument of a call, add one, or exchange two."""
    for node in code.nodes():
        if isinstance(node, ast.Call):
            for index in range(len(node.keywords)):
                rest = node.keywords[:index] + node.keywords[index + 1 :]
                yield _instead(code, node, keywords=rest)
            for index in range(len(node.args)):
                yield _instead(code, node, args=node.args[:index] + node.args[index + 1 :])
            more = [*node.keywords, ast.keyword("extra_", ast.Constant(None))]
            yield _instead(code, node, keywords=more)
            if len(node.args) > 1:
                yield _instead(code, node, args=[node.args[1], node.args[0], *node.args[2:]])


def _instead(code: Code, node: ast.AST, **fields: object) -> Edit:
    """The edit that puts other fields in a node. The node is unparsed, and loses its comments."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    text = ast.unparse(new)
    return code.replaced(node, text if isinstance(node, (ast.Call, ast.stmt)) else f"({text})")


# ------------------------------------------------------------------ the definition's head


def change_signature(code: Code) -> Iterator[Edit]:
    old = code.node.args
    for name in ("posonlyargs", "args", "kwonlyargs"):
        for index in range(len(getattr(old, name))):
            new = copy.deepcopy(old)
            del getattr(new, name)[index]
            if name == "kwonlyargs":
                del new.kw_defaults[index]
            del new.defaults[: max(0, len(new.defaults) - len(new.posonlyargs) - len(new.args))]
            yield _head(code, args=new)
            new = copy.deepcopy(old)
            parameter = getattr(new, name)[index]
            parameter.annotation = None if parameter.annotation else ast.Name("int")
            yield _head(code, args=new)
    new = copy.deepcopy(old)
    new.kwonlyargs.append(ast.arg("extra_"))
    new.kw_defaults.append(None)
    yield _head(code, args=new)
    new = copy.deepcopy(old)
    new.vararg = None if old.vararg else ast.arg("more_")
    yield _head(code, args=new)
    new = copy.deepcopy(old)
    new.kwarg = None if old.kwarg else ast.arg("more_")
    yield _head(code, args=new)
    if old.args and not old.posonlyargs:
        new = copy.deepcopy(old)
        new.posonlyargs = [new.args.pop(0)]
        yield _head(code, args=new)
    if old.kwonlyargs and len(old.defaults) == len(old.args) * bool(old.kw_defaults[0]):
        new = copy.deepcopy(old)
        new.args.append(new.kwonlyargs.pop(0))
        new.defaults.extend(filter(None, [new.kw_defaults.pop(0)]))
        yield _head(code, args=new)


def change_default(code: Code) -> Iterator[Edit]:
    """Change a default, take it away, or add one."""
    old = code.node.args
    for index in range(len(old.defaults)):
        new = copy.deepcopy(old)
        new.defaults[index] = ast.Name("other_")
        yield _head(code, args=new)
    if old.defaults:
        new = copy.deepcopy(old)
        del new.defaults[0]
        yield _head(code, args=new)
    if len(old.defaults) < len(old.posonlyargs) + len(old.args):
        new = copy.deepcopy(old)
        new.defaults.insert(0, ast.Constant(None))
        yield _head(code, args=new)
    for index, default in enumerate(old.kw_defaults):
        for other in (ast.Name("other_"), None):
            if default or other:
                new = copy.deepcopy(old)
                new.kw_defaults[index] = other
                yield _head(code, args=new)


def change_return_annotation(code: Code) -> Iterator[Edit]:
    yield _head(code, returns=ast.Name("other_"))
    if code.node.returns:
        yield _head(code, returns=None)


def toggle_async(code: Code) -> Iterator[Edit]:
    start = code.start(code.node)
    if isinstance(code.node, ast.AsyncFunctionDef):
        yield Edit(start, code.text.index("def", start), "")
    else:
        yield Edit(start, start, "async ")


def change_decorators(code: Code) -> Iterator[Edit]:
    start = code.start(code.node)
    decorators = code.node.decorator_list
    for text in ("@staticmethod", "@functools.cache", "@torch.inference_mode()"):
        yield Edit(start, start, text + "\n" + code.margin(code.node))
    for node, after in pairwise([*decorators, None]):
        sign = code.text.rindex("@", 0, code.start(node))
        yield Edit(
            sign, start if after is None else code.text.rindex("@", 0, code.start(after)), ""
        )
    for one, other in pairwise(decorators):
        texts = [code.text[code.start(node) : code.end(node)] for node in (one, other)]
        between = code.text[code.end(one) : code.start(other)]
        yield Edit(code.start(one), code.end(other), texts[1] + between + texts[0])


def _head(code: Code, **fields: object) -> Edit:
    new = copy.copy(code.node)
    for name, value in {"body": [ast.Pass()], "decorator_list": [], **fields}.items():
        setattr(new, name, value)
    text = ast.unparse(new)
    start = code.start(code.node)
    colon = next(t for t in code.tokens if t.start >= start and t.string == ":" and t.depth == 0)
    return Edit(start, colon.end, text[: text.rindex(":") + 1])


# ------------------------------------------------------------------ where and how often it is there


def rename_function(code: Code) -> Iterator[Edit]:
    def_ = code.text.index("def", code.start(code.node))
    end = code.text.index(code.node.name, def_ + len("def")) + len(code.node.name)
    yield Edit(end, end, "_")


def define_again(code: Code) -> Iterator[Edit]:
    if span := code.lines(code.node):
        yield Edit(span[1], span[1], code.text[slice(*span)])
        yield Edit(span[0], span[0], f"{code.margin(code.node)}def {code.node.name}(): 1\n\n")


# ------------------------------------------------------------------ neutral: comments and space

COMMENTS = (
    "# why",
    "# type: ignore[misc]",
    "#",
    "# what only str.splitlines ends:\u2028 \x0c \x1c \x85 \u00e9\u4e16\U0001f600",
    "# \"\"\" ''' \\ ( [ {",
    "# return None",
)


def add_comment(code: Code) -> Iterator[Edit]:
    for token in _line_ends(code):
        for comment in COMMENTS:
            yield Edit(token.start, token.start, "  " + comment)
            yield Edit(token.end, token.end, comment + "\n")


def remove_comment(code: Code) -> Iterator[Edit]:
    for token in code.tokens:
        if token.kind == tokenize.COMMENT:
            yield Edit(token.start, token.end, "")


def add_blank_line(code: Code) -> Iterator[Edit]:
    for token in _line_ends(code):
        for line in ("\n", "   \n", "\t\n", "\x0c\n", "\n\n\n"):
            yield Edit(token.end, token.end, line)


def add_trailing_space(code: Code) -> Iterator[Edit]:
    for token in _line_ends(code):
        for space in (" ", "\t", "  \x0c"):
            yield Edit(token.start, token.start, space)


def add_space(code: Code) -> Iterator[Edit]:
    for _, token in _within_lines(code):
        for space in (" ", "\t"):
            yield Edit(token.start, token.start, space)


def wrap_line(code: Code) -> Iterator[Edit]:
    for before, token in _within_lines(code):
        for margin in ("", "    ", "\t" * 9):
            line_end = "\n" if before.depth else "\\\n"
            yield Edit(token.start, token.start, f" {line_end}{margin}")


def join_lines(code: Code) -> Iterator[Edit]:
    for before, token, after in zip(code.tokens, code.tokens[1:], code.tokens[2:], strict=False):
        comments = tokenize.COMMENT in (before.kind, after.kind)
        # A token that was left out, of an f-string, is between them if there is more than space.
        between = code.text[token.start : after.start]
        if token.kind == tokenize.NL and token.depth and not comments and not between.strip():
            yield Edit(token.start, after.start, " ")


def join_statements(code: Code) -> Iterator[Edit]:
    """Join two statements on one line, with a semicolon."""
    for _, block in code.blocks():
        for one, other in pairwise(block):
            between = code.text[code.end(one) : code.start(other)]
            is_compound = any(hasattr(n, "body") or hasattr(n, "cases") for n in (one, other))
            if not is_compound and not between.strip():
                yield Edit(code.end(one), code.start(other), "; ")


def _line_ends(code: Code) -> list[Token]:
    return [t for t in code.tokens if t.kind in (tokenize.NEWLINE, tokenize.NL)]


def _within_lines(code: Code) -> Iterator[tuple[Token, Token]]:
    """Neighbours between which there may be space, and a line end where it is continued."""
    borders = (tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)
    for before, after in pairwise(code.tokens):
        # A token that was left out, of an f-string, is between them if there is more than space.
        between = code.text[before.end : after.start]
        if before.kind not in borders and after.kind not in borders and not between.strip(" \t"):
            yield before, after


# ------------------------------------------------------------------ neutral: other ways to write it


def add_parentheses(code: Code) -> Iterator[Edit]:
    for node in code.nodes():
        is_value = isinstance(getattr(node, "ctx", ast.Load()), ast.Load)
        # What may stand in a subscript, or with a star, and not in parentheses.
        parts = (node, *getattr(node, "elts", ()))
        is_special = any(isinstance(part, (ast.Slice, ast.Starred)) for part in parts)
        if isinstance(node, ast.expr) and is_value and not is_special:
            yield code.replaced(node, f"({code.text[code.start(node) : code.end(node)]})")


def add_trailing_comma(code: Code) -> Iterator[Edit]:
    for node in code.nodes():
        if isinstance(node, ast.Call) and (node.args or node.keywords):
            end = code.end(node) - 1
            inner = code.text[code.start(node) : end].rstrip()
            is_alone = len(node.args) == 1 and not node.keywords
            generator = is_alone and isinstance(node.args[0], ast.GeneratorExp)
            last_line = inner.rpartition("\n")[2]
            if not inner.endswith(",") and not generator and "#" not in last_line:
                yield Edit(code.start(node) + len(inner), end, ",")


def requote(code: Code) -> Iterator[Edit]:
    for token in code.tokens:
        if token.kind == tokenize.STRING and not _is_format(token.string):
            value = ast.literal_eval(token.string)
            prefix = "b" if isinstance(value, bytes) else ""
            numbers = value if prefix else map(ord, value)
            escapes = "".join(f"\\x{n:02x}" if n < 256 else f"\\U{n:08x}" for n in numbers)
            half = len(value) // 2
            for text in (
                repr(value),
                f'{prefix}"{escapes}"',
                f'{prefix}"""{escapes}"""' if escapes else repr(value),
                f"{value[:half]!r} {value[half:]!r}",
                f"{value!r} {type(value)()!r}",
            ):
                # The space keeps two quotes apart from one that follows.
                yield Edit(token.start, token.end, text + " ")


def _is_format(literal: str) -> bool:
    return "f" in literal[: literal.index(literal[-1])].lower()


def rewrite_number(code: Code) -> Iterator[Edit]:
    for token in code.tokens:
        if token.kind == tokenize.NUMBER:
            value = ast.literal_eval(token.string)
            for text in (hex(value), f"{value:#_b}") if isinstance(value, int) else (repr(value),):
                yield Edit(token.start, token.end, text)


DOCSTRINGS = ('"""Other."""', "'One\\n\\n    two.'", 'r"""\nLines,\n\n\tand \\d.\n"""')


def change_docstring(code: Code) -> Iterator[Edit]:
    """Add, change or remove a docstring, also in functions within the function."""
    for node in code.nodes():
        if has_docstring(node):
            for text in DOCSTRINGS:
                yield code.replaced(node.body[0], text)  # type: ignore[attr-defined]
            span = code.lines(node.body[0])  # type: ignore[attr-defined]
            rest = node.body[1:2]  # type: ignore[attr-defined]
            if span and rest and not _is_string(rest[0]):
                yield Edit(*span, "")
        elif isinstance(node, FUNCTIONS) and code.lines(node.body[0]):
            for text in DOCSTRINGS:
                start = code.start(node.body[0])
                yield Edit(start, start, text + "\n" + code.margin(node.body[0]))


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def unparse_statement(code: Code) -> Iterator[Edit]:
    for _, block in code.blocks():
        for node in block:
            if span := code.lines(node):
                yield Edit(*span, indent(ast.unparse(node), code.margin(node)) + "\n")


def unparse_function(code: Code) -> Iterator[Edit]:
    if span := code.lines(code.node):
        yield Edit(*span, indent(ast.unparse(code.node), code.margin(code.node)) + "\n")
    yield _head(code)


def reindent_body(code: Code) -> Iterator[Edit]:
    if not (span := code.lines(code.node)):
        return
    for unit in (" ", "  ", " " * 8, "\t"):
        depth, begins, text, done = 0, True, "", span[0]
        for token in code.tokens:
            if token.kind in (tokenize.INDENT, tokenize.DEDENT):
                depth += 1 if token.kind == tokenize.INDENT else -1
            elif token.kind not in (tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER):
                if begins:
                    line = code.text.rfind("\n", 0, token.start) + 1
                    inner = depth - 1 if code.margin(code.node) else depth
                    text += code.text[done:line] + code.margin(code.node) + unit * inner
                    done = token.start
                begins = token.kind == tokenize.NEWLINE
        yield Edit(*span, text + code.text[done : span[1]])


# ------------------------------------------------------------------ neutral: around it

NEIGHBOURS = (
    "other_ = 1\n",
    "def other_(self):\n    return self\n\n",
    "class Other_:\n    pass\n\n",
    "# A line of its own.\n\n\n",
    "if True:\n    import zlib\n",
)


def add_neighbour(code: Code) -> Iterator[Edit]:
    for node in dict.fromkeys((code.node, code.top)):  # in an order that is the same each time
        if span := code.lines(node):
            for text in NEIGHBOURS:
                for place in span:
                    yield Edit(place, place, indent(text, code.margin(node)))


def move_function(code: Code) -> Iterator[Edit]:
    span = code.lines(code.node)
    for other in code.block:
        place = code.lines(other)
        if span and place and other is not code.node and (other is not code.block[0]):
            text = code.text[slice(*span)]
            if place[0] < span[0]:
                yield Edit(place[0], span[1], text + code.text[place[0] : span[0]])
            else:
                yield Edit(span[0], place[1], code.text[span[1] : place[1]] + text)


CHANGING: tuple[Mutator, ...] = (
    delete_statement,
    duplicate_statement,
    swap_statements,
    insert_statement,
    make_generator,
    guard_statement,
    move_statement_out,
    change_jump,
    negate_condition,
    rename,
    change_constant,
    change_operator,
    swap_operands,
    drop_operator,
    change_call,
    change_signature,
    change_default,
    change_return_annotation,
    toggle_async,
    change_decorators,
)

#: After these there is no function of the name, or more than one.
MISPLACING: tuple[Mutator, ...] = (rename_function, define_again)

NEUTRAL: tuple[Mutator, ...] = (
    add_comment,
    remove_comment,
    add_blank_line,
    add_trailing_space,
    add_space,
    wrap_line,
    join_lines,
    join_statements,
    add_parentheses,
    add_trailing_comma,
    requote,
    rewrite_number,
    change_docstring,
    unparse_statement,
    unparse_function,
    reindent_body,
    add_neighbour,
    move_function,
)
