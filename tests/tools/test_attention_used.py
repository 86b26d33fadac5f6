"""Which attention an engine calls."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from megatron_patch.testing import attention
from tools import attention_used


def function_of(module):
    def function():
        return module

    function.__module__ = module
    return function


def test_what_is_called_is_named_and_not_what_is_installed(device):
    from megatron.core.transformer import attention as module

    with attention_used.recorded() as called:
        assert module.flash_attn_varlen_func is not attention.flash_attn_varlen_func
        assert called == set()
        with pytest.raises(TypeError):  # for want of arguments
            module.flash_attn_varlen_func()
    assert called == {attention_used.STAND_IN}
    assert module.flash_attn_varlen_func is attention.flash_attn_varlen_func
    assert attention_used.summary(called) == "stand-in of megatron_patch.testing"
    assert attention_used.summary(set()) == "none"


def test_names_have_versions(monkeypatch):
    installed = ModuleType("flash_attn")
    installed.__version__ = "2.8.3"
    monkeypatch.setitem(sys.modules, "flash_attn", installed)
    names = {
        "flash_attn.flash_attn_interface": "flash-attn 2.8.3",
        "flashattn_hopper.flash_attn_interface": "flashattn-hopper of unknown version",
        "flash_attn.cute.interface": "flash-attn-4 of unknown version",
        "somebody.elses": "somebody.elses",
    }
    for module, name in names.items():
        assert attention_used.name_of(function_of(module)) == name


def test_kernels_of_attention():
    names = [
        "void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<64, 64>, true>(params)",
        "void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64>, true>(params)",
        "void at::native::elementwise_kernel<128, 2>(int)",
    ]
    assert attention_used.kernels(iter(names)) == ["flash::flash_fwd_splitkv_kernel"]
