"""Backports for a pinned Megatron-Core. Importing this package installs them.

``import megatron_patch`` may come before or after Megatron's own import; it imports neither torch
nor Megatron. Each patch is applied to source that is recognised by its fingerprint, and to nothing
else; :func:`status` says what became of it. The environment variables ``MEGATRON_PATCH`` and
``MEGATRON_PATCH_STRICT`` are read at import and at each :func:`install`.

Not the module zoo of the same import name, Pai-Megatron-Patch: ``megatron_patch.__file__`` tells.
"""

from __future__ import annotations

from .backports import SERIES
from .engine import Engine
from .errors import (
    ForeignPatchError,
    MegatronPatchError,
    MegatronPatchWarning,
    RewriteError,
    SettingsError,
    SourceMissingError,
    StrictModeError,
    TargetError,
)
from .model import Kind, PatchStatus, State
from .settings import Settings

__version__ = "0.1.0"

__all__ = [
    "ForeignPatchError",
    "Kind",
    "MegatronPatchError",
    "MegatronPatchWarning",
    "PatchStatus",
    "RewriteError",
    "SettingsError",
    "SourceMissingError",
    "State",
    "StrictModeError",
    "TargetError",
    "install",
    "status",
    "uninstall",
]

_engine = Engine(SERIES)


def install() -> None:
    """Apply the selected patches now, or as soon as their modules are imported. Idempotent.

    Raises ``SettingsError`` for a value of an environment variable that is not understood, and
    ``StrictModeError``, with everything taken back, when ``MEGATRON_PATCH_STRICT=1`` and a
    selected patch is drifted, failed or shadowed.
    """
    _engine.install(Settings.from_environment(SERIES))


def uninstall() -> None:
    """Put the original objects back. Idempotent.

    Where somebody else has put a patch on top of ours, ours stays below it, and its state is
    ``shadowed``.
    """
    _engine.uninstall()


def status() -> tuple[PatchStatus, ...]:
    """The state of each patch and the reason for it, looked up now, in the series' order."""
    return _engine.status()


install()
