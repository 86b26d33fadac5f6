"""The commands of ``megatron-patch``: each takes its options and returns the exit status."""

from __future__ import annotations

from .. import _engine

#: All patches of this process, those of others behind those of this package.
SERIES = _engine.series
