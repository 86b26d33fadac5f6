from __future__ import annotations

import importlib.util
import sys

import pytest
from packaging.version import Version

from megatron_patch.testing import attention, flash_attn_module, rotary


def test_installed_and_taken_away_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flash_attn", *flash_attn_module.OTHER_GENERATIONS):
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = set(sys.modules)

    with flash_attn_module.installed() as module:
        import flash_attn

        assert flash_attn is module
        assert flash_attn.flash_attn_varlen_func is attention.flash_attn_varlen_func
        assert flash_attn.flash_attn_with_kvcache is attention.flash_attn_with_kvcache
        from flash_attn.layers.rotary import apply_rotary_emb

        assert apply_rotary_emb is rotary.apply_rotary_emb
        assert Version(flash_attn.__version__) >= Version("2.7.3")
        assert importlib.util.find_spec("flash_attn") is not None
        for name in ("flash_attn.cute", *flash_attn_module.OTHER_GENERATIONS):
            with pytest.raises(ImportError):
                importlib.import_module(name)

    assert set(sys.modules) == before


def test_what_was_there_before_is_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", sys)

    with flash_attn_module.installed():
        assert sys.modules["flash_attn"] is not sys

    assert sys.modules["flash_attn"] is sys


def test_is_stood_in() -> None:
    with flash_attn_module.installed() as module:
        assert flash_attn_module.is_stood_in(module)
    assert not flash_attn_module.is_stood_in(sys)
