"""Backports for a pinned Megatron-Core. Importing this package installs them.

``import megatron_patch`` may come before or after Megatron's own import; it imports neither torch
nor Megatron. Each patch is applied to source that is recognised by its fingerprint, and to nothing
else; :func:`status` says what became of it. The environment variables ``MEGATRON_PATCH``,
``MEGATRON_PATCH_ACCEPT`` and ``MEGATRON_PATCH_STRICT`` are read at import and at each
:func:`install`, ``MEGATRON_PATCH_RECORDS`` at import alone.

Not the module zoo of the same import name, Pai-Megatron-Patch: ``megatron_patch.__file__`` tells.
Processes of ``megatron-patch run`` import this package as ``_megatron_patch``; where the path leads
to it, ``megatron_patch`` is the same module.
"""

from . import main_module as _main_module  # noqa: F401  # before all other imports

# isort: split
import os
import sys
from typing import Any

from . import notes as _notes
from . import ranks as _ranks
from . import running as _running
from .backports import SERIES
from .engine import Engine
from .errors import (
    ForeignPatchError,
    MegatronPatchError,
    MegatronPatchWarning,
    NotMegatronError,
    RankMismatchError,
    RewriteError,
    SettingsError,
    SourceMissingError,
    StrictModeError,
    TargetError,
)
from .model import Kind, Origin, Patch
from .settings import RECORDS, Settings
from .sources import megatron_version
from .states import PatchStatus, State

__version__ = "0.1.0"

__all__ = [
    "ForeignPatchError",
    "Kind",
    "MegatronPatchError",
    "MegatronPatchWarning",
    "NotMegatronError",
    "Origin",
    "PatchStatus",
    "RankMismatchError",
    "RewriteError",
    "SettingsError",
    "SourceMissingError",
    "State",
    "StrictModeError",
    "TargetError",
    "install",
    "status",
    "uninstall",
    "verify_ranks",
]

# What a command is to tell when it has read its arguments, and would not get to here.
_problem: SettingsError | None = None

_engine: Engine
if "_engine" not in globals() and not os.environ.get(RECORDS):
    # Before another copy, in another thread, can find this one. Not on a reload, which goes on with
    # the engine that runs.
    _engine = Engine(SERIES)


def install() -> None:
    """Apply the selected patches now, or as soon as their modules are imported. Idempotent.

    Raises ``SettingsError`` for a value of an environment variable that is not understood or, in
    ``MEGATRON_PATCH_ACCEPT``, does not fit the source that is imported, and
    ``StrictModeError``, with everything taken back, when ``MEGATRON_PATCH_STRICT=1`` and a
    selected patch is drifted, failed or shadowed. Imports of Megatron that come later raise the
    latter alone: for them, a digest that does not fit makes its patch failed.
    """
    _engine.install(Settings.from_environment(_engine.series))


def uninstall() -> None:
    """Put the original code back. Idempotent.

    Where somebody else has put a patch on top of ours, ours stays below it, and its state is
    ``shadowed``.
    """
    _engine.uninstall()


def status() -> tuple[PatchStatus, ...]:
    """The state of each patch and the reason for it, looked up now, in the series' order."""
    return _engine.status()


def verify_ranks(group: Any = None) -> None:
    """Raise on every rank of a process group when its ranks differ in what is patched.

    Compares the version of Megatron-Core, the version of this package, and the state and reason
    of each patch, so that a node with another Megatron or other environment variables is found.
    Those of the HTTP server, which some ranks alone import, are left out; those of Mamba layers and
    of latent attention may be pending on all ranks, whose model then has none. Call it on all
    ranks, once, when the model is built and before serving. It is a collective: a rank that does
    not call it makes the others wait.

    Args:
        group: a ``torch.distributed`` process group of any size, gloo or NCCL; ``None`` is the
            default group. A process that is not in the group returns at once.

    Raises:
        RankMismatchError: on all ranks alike; it names the patches and the ranks that differ, and
            the environment variables of this package that differ on them, or the patches that
            are still pending.
        RuntimeError: there is no initialised process group.

    The cost is that of one ``all_gather_object`` of about 200 bytes and 150 for each patch.
    """
    cases = _engine.cases
    compared = [entry for entry in status() if not cases[entry.id].patch.is_of_server]
    waiting = [id for id, case in cases.items() if case.patch.may_stay_pending]
    _ranks.verify_ranks(compared, megatron_version(), __version__, _engine.given, group, waiting)


def _series() -> tuple[Patch, ...]:
    """The series, with the records of others behind it if the environment names any."""
    files = os.environ.get(RECORDS)
    if not files:
        return SERIES
    from . import outside

    return (*SERIES, *outside.records(files, SERIES))


def _start() -> None:
    """Install the patches, with the engine of another copy of this package if there is one."""
    global _engine, _problem
    is_known = _running.NAME in sys.modules
    first = _running.first_copy(__name__)
    if vars(first) is globals():
        try:
            if "_engine" not in globals():
                _engine = Engine(_series())
        except BaseException as error:
            if not (isinstance(error, SettingsError) and _running.is_command(__name__)):
                sys.modules.pop(_running.NAME, None)
                raise
            _engine, _problem = Engine(SERIES), error
        setattr(_engine.finder, _running.FINDERS_ATTRIBUTE, first)
        if not is_known:
            _notes.leave()
    else:
        names = [*vars(first)["__all__"], "__all__", "__version__", "_engine"]
        globals().update({name: vars(first)[name] for name in names if name in vars(first)})
        _running.put_in_place_of(__name__, first)
        if "_engine" not in vars(first):
            return  # it is about to be, when the records that import this have been read
    try:
        if _problem is None:
            install()
    except BaseException as error:
        if isinstance(error, SettingsError) and _running.is_command(__name__):
            _problem = error
            return
        if not is_known:
            sys.modules.pop(_running.NAME, None)
        raise


_start()
