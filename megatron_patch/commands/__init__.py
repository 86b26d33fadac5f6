"""The commands of ``megatron-patch``: each takes its options and returns the exit status."""

from __future__ import annotations

from .. import _engine

#: All patches of this process, those of others behind those of this package.
SERIES = _engine.series

#: The exit status when some of the selected patches do not fit the source: they are drifted.
SOME_DO_NOT_FIT = 3
