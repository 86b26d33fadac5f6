"""What the script makes of flash-attn's source. Compilers are not called."""

from __future__ import annotations

import ast
import re

import pytest

from tools import flash_attn_wheel

SWITCHES = "\n".join(
    f"#define {name}_SWITCH(COND, ...) old"
    for name in ("FP16", "HEADDIM", "DROPOUT", "ALIBI", "SOFTCAP", "LOCAL")
)


@pytest.fixture
def tree(tmp_path):
    """A source tree with the file names of the real one."""
    source = tmp_path / flash_attn_wheel.SOURCE / "src"
    source.mkdir(parents=True)
    for name in flash_attn_wheel.kernels(flash_attn_wheel.SIZES):
        (tmp_path / name).write_text("// kernels\n")
    (tmp_path / flash_attn_wheel.SWITCHES).write_text(SWITCHES)
    cutlass = tmp_path / "csrc/cutlass/include/cutlass"
    cutlass.mkdir(parents=True)
    (cutlass / "cutlass.h").touch()
    (tmp_path / "setup.py").write_text("raise SystemExit\n")
    return tmp_path


def test_two_head_dimensions_are_eight_files_of_kernels(tree):
    flash_attn_wheel.transform(tree, (128, 64), ["90"])
    script = (tree / "setup.py").read_text()
    ast.parse(script)
    built = re.findall(r"flash_fwd_\w+\.cu", script)
    assert len(built) == 8
    assert all("bf16" in name for name in built)
    assert {re.search(r"hdim(\d+)", name)[1] for name in built} == {"64", "128"}
    assert "arch=compute_90,code=sm_90" in script
    for name in flash_attn_wheel.LEFT_OUT:
        assert script.count(f"-DFLASHATTENTION_DISABLE_{name}'") == 2  # of C++ and of CUDA
    assert "UNEVEN_K" not in script
    assert "+bf16.forward.64.128" in script


def test_what_is_left_out_is_refused_and_not_misread(tree):
    flash_attn_wheel.transform(tree, (64, 128), ["90"])
    header = (tree / flash_attn_wheel.SWITCHES).read_text()
    assert header.endswith('#include "few_kernels.h"\n')
    few = (tree / flash_attn_wheel.SWITCHES).with_name("few_kernels.h").read_text()
    # Each macro is one logical line, in which the checks come first.
    macros = dict(re.findall(r"#define (\w+)\(.*?\) (.*)", few.replace("\\\n", " ")))
    assert macros["FP16_SWITCH"].index("TORCH_CHECK(!(COND)") < macros["FP16_SWITCH"].index("using")
    head_dims = macros["HEADDIM_SWITCH"]
    assert head_dims.index("TORCH_CHECK(") < head_dims.index("kHeadDim = 64")
    assert '"built for heads of 33 to 64, 97 to 128"' in head_dims
    backward = (tree / flash_attn_wheel.NO_BACKWARD).read_text()
    assert backward.count("template void run_mha_bwd_<cutlass::bfloat16_t") == 4


@pytest.mark.parametrize("built", [(64, 128), (32,), (96, 32), flash_attn_wheel.SIZES])
def test_a_head_goes_to_the_kernel_whose_width_it_is_rounded_up_to(built):
    """The results of a split are as wide as that: a wider kernel writes past their end."""
    macro = flash_attn_wheel.switches(built).replace("\\\n", " ").partition("HEADDIM_SWITCH(")[2]
    (refusal,) = re.findall(r"TORCH_CHECK\((.*?), \"", macro)
    branches = re.findall(r"if (\(.*?\)) \{ constexpr static int kHeadDim = (\d+);", macro)

    def holds(condition, size):
        return eval(
            condition.replace("HEADDIM", str(size)).replace("&&", "and").replace("||", "or")
        )

    for size in range(8, 257, 8):
        rounded = -(-size // 32) * 32 if size <= 128 else -(-size // 64) * 64
        taken = [int(width) for condition, width in branches if holds(condition, size)]
        assert taken == [rounded] * (rounded in built), size
        assert holds(refusal, size) == (rounded in built), size


def test_other_source_is_not_touched(tree):
    (tree / flash_attn_wheel.SWITCHES).write_text("#pragma once\n")
    with pytest.raises(ValueError, match="has no FP16_SWITCH: is it flash-attn"):
        flash_attn_wheel.transform(tree, (64,), ["90"])
    (tree / "csrc/flash_attn/src/flash_fwd_hdim64_bf16_sm80.cu").unlink()
    with pytest.raises(ValueError, match="flash_fwd_hdim64_bf16_sm80"):
        flash_attn_wheel.transform(tree, (64,), ["90"])
    assert (tree / "setup.py").read_text() == "raise SystemExit\n"


def test_without_a_source_distribution(capsys):
    with pytest.raises(SystemExit):
        flash_attn_wheel.main([])
    assert "expected a source distribution" in capsys.readouterr().err
