"""Where ``import flash_attn`` finds the stand-ins of :mod:`.attention`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

from . import attention

# High enough for Megatron's minimum (2.7.3); the local part tells whoever logs it what it is.
VERSION = "2.7.4+megatron.patch.testing"

# Other generations of flash-attn, which Megatron prefers to the one stood in for.
OTHER_GENERATIONS = ("flash_attn_3", "flashattn_hopper")


@contextmanager
def installed() -> Iterator[ModuleType]:
    """Have ``import flash_attn`` find the stand-ins, and the other generations nothing.

    What was importable before is importable again afterwards. Modules that took the functions by
    name keep them.
    """
    module = ModuleType("flash_attn", attention.__doc__)
    # `importlib.util.find_spec` raises for a module without one, and other packages ask it.
    module.__spec__ = ModuleSpec("flash_attn", loader=None)
    module.__dict__.update(
        __version__=VERSION,
        flash_attn_varlen_func=attention.flash_attn_varlen_func,
        flash_attn_with_kvcache=attention.flash_attn_with_kvcache,
    )
    # None in `sys.modules` makes an import of that name fail.
    replaced = {"flash_attn": module, **dict.fromkeys(OTHER_GENERATIONS)}
    before = {name: sys.modules[name] for name in replaced if name in sys.modules}
    sys.modules.update(replaced)  # type: ignore[arg-type]
    try:
        yield module
    finally:
        for name in replaced:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def is_stood_in(module: ModuleType) -> bool:
    """Whether ``module``, Megatron's attention, took its functions from here."""
    function = vars(module).get("flash_attn_varlen_func")
    return function is attention.flash_attn_varlen_func
