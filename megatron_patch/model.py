"""The records: what a backport is, what it edits, and what became of it.

Everything here is a named tuple or an enum; nothing here reads a file or changes anything. A
*target* is written ``package.module:Class.method``.

Processes without Megatron import this module too. Hence named tuples, not dataclasses, which take
four times as long to define and import ``inspect``; and what reads source is imported where it is
needed.
"""

from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, NamedTuple, Union


class Judgement(str, Enum):
    """What source says of a patch."""

    APPLICABLE = "applicable"  #: it is known, and needs the patch
    UPSTREAMED = "upstreamed"  #: it has the change already
    NOT_APPLICABLE = "not_applicable"  #: it has no such target, or never needed the change
    DRIFTED = "drifted"  #: it is not known

    def __str__(self) -> str:
        return self.value


class State(str, Enum):
    """What became of a patch in this process."""

    PENDING = "pending"  #: the target module has not been imported yet
    APPLIED = "applied"  #: our code runs
    UPSTREAMED = "upstreamed"  #: the source already has the change
    DRIFTED = "drifted"  #: the source is not one we know: left alone
    NOT_APPLICABLE = "not_applicable"  #: no such target, or source that never needed it
    DISABLED = "disabled"  #: not selected by ``MEGATRON_PATCH``, or uninstalled
    SHADOWED = "shadowed"  #: somebody else's patch is on the same target
    FAILED = "failed"  #: applying raised; everything of the patch was rolled back

    def __str__(self) -> str:
        return self.value


#: States in which a selected patch does not protect the process, and an operator must know.
UNHEALTHY = frozenset({State.DRIFTED, State.FAILED, State.SHADOWED})


class Kind(str, Enum):
    """What a patch is for."""

    PERFORMANCE = "performance"
    CORRECTNESS = "correctness"

    def __str__(self) -> str:
        return self.value


class Origin(str, Enum):
    """Who has reviewed the change of a patch."""

    UPSTREAM = "upstream"  #: upstream has, and has released it
    MAIN = "main"  #: upstream has, on its main branch, and not released it yet
    OURS = "ours"  #: we alone; upstream has no such change
    OUTSIDE = "outside"  #: who gave the record in ``MEGATRON_PATCH_RECORDS``; not of this package

    def __str__(self) -> str:
        return self.value


#: The newest release of Megatron-Core that the series knows. What is fixed in a later one has not
#: been released.
NEWEST_RELEASE = "0.19.2"


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
    """Put our function's signature-equal body in the place of the whole target.

    For small methods. Decorators of the target stay.
    """

    target: str
    function: Callable[..., Any]


class Before(NamedTuple):
    """Insert the statements of ``hook`` in front of the target's first statement.

    ``hook`` takes one argument with the name of the target's first parameter (``self``), and
    returns nothing. For resets of state. ``independent`` says why it does not matter what else the
    target does; then any method will do that is there and takes such an argument.
    """

    target: str
    hook: Callable[[Any], None]
    independent: str = ""

    @property
    def statements(self) -> str:
        """The hook's body without its docstring, dedented."""
        import ast
        import textwrap

        text = source_of(self.hook)
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
    """Whether the edit changes what runs: a condition does not, nor does another comment."""
    import ast

    if isinstance(edit, Substitute):
        return ast.dump(ast.parse(edit.find)) != ast.dump(ast.parse(edit.put))
    return not isinstance(edit, Requires)


def is_known_by_digest(edit: Edit) -> bool:
    """Whether the target of the edit has to be source that is known."""
    return not isinstance(edit, Add) and not getattr(edit, "independent", "")


class Variant(NamedTuple):
    """The edits for source of one shape. ``name`` is that of the releases that have it first."""

    name: str
    edits: tuple[Edit, ...]


class Source(NamedTuple):
    """Source that is known for a patch: the digests of the targets that tell it, and what it is.

    ``proved`` is the name of the variant whose edits it needs, :data:`HAS_IT` or
    :data:`NEEDS_NONE`. ``releases`` says in words where it is found, ``commit`` is the upstream
    commit that it was proved on.
    """

    proved: str
    digests: tuple[tuple[str, str], ...]
    releases: str
    commit: str = ""


HAS_IT = "has it"
NEEDS_NONE = "needs none"


class Patch(NamedTuple):
    """One upstream change brought to older source, or a change of ours that upstream lacks.

    The latter has ``None`` for all that is upstream's, ``fixed_in`` included. ``target`` is the
    target whose absence means that the release has nothing to patch. ``told_by`` are the targets
    that tell source which has the change, or never needed it. ``symptom`` says what a user sees
    without the patch, ``outcome`` what there is with it, ``removal`` when this record
    can be deleted, ``updated`` when it was last changed (``YYYY-MM-DD``, as ``upstream_date``).
    ``sources`` is the known source of a record from outside this package; for those of it, it is in
    the :mod:`ledger <megatron_patch.ledger>`.
    """

    id: str
    kind: Kind
    summary: str
    symptom: str
    outcome: str
    upstream_pr: int | None
    upstream_commit: str | None
    upstream_date: str | None
    fixed_in: str | None
    releases: str
    removal: str
    updated: str
    target: str
    variants: tuple[Variant, ...]
    told_by: tuple[str, ...] = ()
    default: bool = True
    sources: tuple[Source, ...] | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """All that the patch looks at, that of its own first; no helpers."""
        edits = (edit for variant in self.variants for edit in variant.edits)
        edited = (edit.target for edit in edits if not isinstance(edit, Add))
        return tuple(dict.fromkeys((self.target, *edited, *self.told_by)))

    @property
    def origin(self) -> Origin:
        """Who has reviewed the change."""
        if self.sources is not None:
            return Origin.OUTSIDE
        if self.fixed_in is None:
            return Origin.OURS
        fixed, newest = ([int(n) for n in v.split(".")] for v in (self.fixed_in, NEWEST_RELEASE))
        return Origin.UPSTREAM if fixed <= newest else Origin.MAIN


class PatchStatus(NamedTuple):
    """The one state of one patch, and the one reason for it."""

    id: str
    kind: Kind
    state: State
    reason: str
    upstream_pr: int | None
    fixed_in: str | None

    def as_dict(self) -> dict[str, str | int | None]:
        """The fields in a form that ``json.dumps`` takes."""
        return {
            "id": self.id,
            "kind": self.kind.value,
            "state": self.state.value,
            "reason": self.reason,
            "upstream_pr": self.upstream_pr,
            "fixed_in": self.fixed_in,
        }
