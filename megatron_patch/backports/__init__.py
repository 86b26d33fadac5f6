"""The series: every backport, in the order in which they are applied."""

from __future__ import annotations

from ..model import Patch
from .input_position_view_cache import INPUT_POSITION_VIEW_CACHE

SERIES: tuple[Patch, ...] = (INPUT_POSITION_VIEW_CACHE,)
