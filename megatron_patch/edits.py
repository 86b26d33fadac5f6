"""What a patch does to its targets. Nothing here reads Megatron's files or changes anything.

A *target* is written ``package.module:Class.method``. The edits are named tuples, for the reason
that :mod:`.model` gives. Modules that read source are imported only where they are needed.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Union


class Target(NamedTuple):
    """A dotted target, taken apart: ``package.module`` and ``Class.method`` or ``function``."""

    module: str
    qualname: str

    @classmethod
    @cache  # the targets of the series are asked for again and again
    def parse(cls, text: str) -> "Target":
        """Read ``package.module:Class.method``. Raises ``ValueError`` on any other form."""
        module, colon, qualname = text.partition(":")
        parts = [*module.split("."), *qualname.split(".")]
        if not colon or not all(part.isidentifier() for part in parts):
            raise ValueError(f"target {text!r}: expected 'package.module:Class.method'")
        return cls(module, qualname)

    @property
    def scope(self) -> str:
        """The classes around the target, dotted; empty for a module-level function."""
        return self.qualname.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The last part of the dotted name."""
        return self.qualname.rpartition(".")[2]

    def __str__(self) -> str:
        return f"{self.module}:{self.qualname}"


# What our own type checker needs and the target module does not.
_OURS_ALONE = r"  # type: ignore.*$|(?<=\bself): Any\b"


@cache
def source_of(function: Callable[..., Any] | type) -> str:
    """The dedented source text of one of our own functions or classes, as it is put in place."""
    import inspect
    import re
    import textwrap

    text = textwrap.dedent(inspect.getsource(function))
    return re.sub(_OURS_ALONE, "", text, flags=re.MULTILINE)


class Replace(NamedTuple):
    """Replace the whole target by our function, which has the same signature.

    For small methods. Decorators of the target stay.
    """

    target: str
    function: Callable[..., Any]


class Before(NamedTuple):
    """Insert the statements of ``hook`` in front of the target's first statement.

    ``hook`` takes one argument with the name of the target's first parameter (``self``), and
    returns nothing. For resets of state. ``independent`` says why it does not matter what else the
    target does; then the target need not be known source, and any plain method with that argument
    will do.
    """

    target: str
    hook: Callable[[Any], None]
    independent: str = ""

    @property
    def statements(self) -> str:
        """The hook's body without its docstring, dedented."""
        return _statements(self.hook)


@cache
def _statements(hook: Callable[[Any], None]) -> str:
    import ast
    import textwrap

    text = source_of(hook)
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef)
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    start, end = body[0].lineno - 1, body[-1].end_lineno
    return textwrap.dedent("".join(text.splitlines(keepends=True)[start:end]))


class Substitute(NamedTuple):
    """A structural hunk: the code ``find`` occurs exactly once; ``put`` takes its place.

    ``find`` is one expression, or one or more consecutive statements; it is searched by syntax
    tree, so formatting and comments do not matter. ``put`` is an expression for an expression,
    and any number of statements (also none) for statements. A name that begins with
    :data:`METAVARIABLE` is any expression, the same one wherever it stands in the hunk.
    """

    target: str
    find: str
    put: str


class Requires(NamedTuple):
    """A condition: the patch is right only where this target, too, is known. Nothing is changed.

    ``why`` says what of the target the patch relies on.
    """

    target: str
    why: str


class Add(NamedTuple):
    """Define a helper in the target's module or class, under a name that is not taken there.

    ``target`` is ``module:name`` or ``module:Class.name``; ``definition`` is a function or a
    class of ours, or one assignment statement as text. Names in it are looked up in the target
    module, as if it had been written there.
    """

    target: str
    definition: Callable[..., Any] | type | str

    @property
    def source(self) -> str:
        """The definition as text."""
        return self.definition if isinstance(self.definition, str) else source_of(self.definition)


#: In the code of a :class:`Substitute`; ``$name`` in a file of hunks.
METAVARIABLE = "METAVARIABLE_"

Edit = Union[Replace, Before, Substitute, Requires, Add]


@cache
def changes_code(edit: Edit) -> bool:
    """Whether the edit changes what runs: a condition does not, nor do other comments."""
    import ast

    from .definitions import statements_of
    from .fingerprint import equal

    if isinstance(edit, Substitute):
        old, new = statements_of(edit.find), statements_of(edit.put)
        # The quick comparison first: trees that it tells apart have different dumps, too.
        return not equal(old, new) or list(map(ast.dump, old)) != list(map(ast.dump, new))
    return not isinstance(edit, Requires)


def is_known_by_digest(edit: Edit) -> bool:
    """Whether the target of the edit has to be source that is known."""
    return not isinstance(edit, Add) and not getattr(edit, "independent", "")
