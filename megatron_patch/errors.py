"""Everything this package raises or warns with, in one place.

Each message names the patch, the dotted target, what was expected and what to do next.
"""

from __future__ import annotations


class MegatronPatchError(Exception):
    """Base class of the errors of this package."""


class SettingsError(MegatronPatchError, ValueError):
    """An environment variable holds a value that is not understood."""


class NotMegatronError(MegatronPatchError):
    """There is no Megatron tree where one was expected."""


class TreeError(MegatronPatchError):
    """A tree is not in a state in which its files may be written."""


class EnablingError(MegatronPatchError):
    """An environment cannot be made to start with the patches, or to start without them."""


class DriftedError(MegatronPatchError):
    """Source is not known, and nobody has asked for edits of unknown source."""


class LedgerError(MegatronPatchError):
    """The ledger of known source cannot be read, or is not of this package."""


class RankMismatchError(MegatronPatchError):
    """The ranks of a process group do not run the same patches on the same Megatron."""


class TargetError(MegatronPatchError):
    """A target cannot be found, or is not made from the source that was recognised."""


class SourceMissingError(TargetError):
    """The source text of a target cannot be read (compiled-only, or removed)."""


class ForeignPatchError(TargetError):
    """Somebody else replaced the target before this package could."""


class RewriteError(MegatronPatchError):
    """An edit does not fit the source text that it was asked to change."""


class StrictModeError(MegatronPatchError):
    """``MEGATRON_PATCH_STRICT=1`` and some patch is drifted, failed or shadowed."""


class MegatronPatchWarning(UserWarning):
    """A selected patch is not active in this process; the message says why."""
