"""The records: what a backport is, and which source it is for.

Everything here is a named tuple or an enum; nothing here reads a file or changes anything.

Processes without Megatron import this module too. Hence named tuples, not dataclasses, which take
four times as long to define and import ``inspect``.
"""

from enum import Enum
from typing import NamedTuple

from .edits import Add, Edit


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


#: The package of the HTTP server.
SERVER = "megatron.core.inference.text_generation_server"

#: The package of Mamba layers.
MAMBA = "megatron.core.ssm"

#: The modules of layers that not every model has.
LAYERS = (MAMBA, "megatron.core.transformer.multi_latent_attention")


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
    def is_of_server(self) -> bool:
        """Whether it is of the HTTP server, which most processes of an engine never import."""
        return self.target.startswith(f"{SERVER}.")

    @property
    def may_stay_pending(self) -> bool:
        """Whether a process with an engine can do without its target: it is of the HTTP server, or
        of layers that are imported for some models alone."""
        module = self.target.partition(":")[0]
        return self.is_of_server or any(f"{module}.".startswith(f"{name}.") for name in LAYERS)

    @property
    def origin(self) -> Origin:
        """Who has reviewed the change."""
        if self.sources is not None:
            return Origin.OUTSIDE
        if self.fixed_in is None:
            return Origin.OURS
        fixed, newest = ([int(n) for n in v.split(".")] for v in (self.fixed_in, NEWEST_RELEASE))
        return Origin.UPSTREAM if fixed <= newest else Origin.MAIN
