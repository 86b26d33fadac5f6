"""Where ``import flash_attn`` finds the stand-ins of :mod:`.attention` and :mod:`.rotary`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from . import attention, module_standins, rotary

# High enough for Megatron's minimum (2.7.3); the local part shows in logs that it is a stand-in.
VERSION = "2.7.4+megatron.patch.testing"

# Other generations of flash-attn, which Megatron prefers to the one stood in for.
OTHER_GENERATIONS = ("flash_attn_3", "flashattn_hopper")


@contextmanager
def installed() -> Iterator[ModuleType]:
    """Have ``import flash_attn`` find the stand-ins, and imports of other generations fail.

    See :func:`.module_standins.importable`.
    """
    names = ("flash_attn_varlen_func", "flash_attn_with_kvcache")
    contents: dict[str, object] = {
        "__version__": VERSION,
        **{name: getattr(attention, name) for name in names},
    }
    module = module_standins.module("flash_attn", attention.__doc__, contents)
    contents = {"apply_rotary_emb": rotary.apply_rotary_emb}
    rotation = module_standins.module("flash_attn.layers.rotary", rotary.__doc__, contents)
    layers = module_standins.module("flash_attn.layers", None, {"rotary": rotation})
    replaced = {
        "flash_attn": module,
        "flash_attn.layers": layers,
        "flash_attn.layers.rotary": rotation,
        # None in `sys.modules` makes an import of that name fail.
        **dict.fromkeys(OTHER_GENERATIONS),
    }
    with module_standins.importable(replaced):
        yield module


def is_stood_in(module: ModuleType) -> bool:
    """Whether ``module``, Megatron's attention, took its functions from here."""
    function = vars(module).get("flash_attn_varlen_func")
    return function is attention.flash_attn_varlen_func
