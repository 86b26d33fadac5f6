"""What became of a patch in this process. Needs no import that a process without Megatron lacks."""

from enum import Enum
from typing import NamedTuple

from .model import Kind


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
