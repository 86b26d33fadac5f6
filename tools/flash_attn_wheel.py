"""Build flash-attn from its source distribution with the few kernels that decoding needs.

    pip install ninja packaging psutil setuptools wheel
    pip download flash-attn==2.8.3 --no-deps --no-binary=:all: --no-build-isolation
    python tools/flash_attn_wheel.py flash_attn-2.8.3.tar.gz --output wheels
    pip install --no-deps wheels/flash_attn-*.whl

The whole of flash-attn takes an hour to compile. Inference of a model in bfloat16 needs the forward
pass of one or two head dimensions, without dropout, ALiBi, soft caps and windows: for three
dimensions these are 12 of its 72 files of kernels, and take minutes. What is left out is refused
with an error when it is called. The kernels that are built are those of flash-attn, unchanged, and
each takes the heads that it takes there: that of 64, heads of 33 to 64.

Needs PyTorch with CUDA, the nvcc of the same version, ninja and setuptools; no network and no GPU.
Headers and libraries that the toolkit lacks are those that PyTorch was installed with. With a GPU
the wheel is tried at the end: its attention has to be that of
``torch.nn.functional.scaled_dot_product_attention`` up to rounding. ``--only-check`` tries the
flash-attn that is installed, and builds none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Any

#: What the source leaves out where ``FLASHATTENTION_DISABLE_...`` of these is defined. UNEVEN_K is
#: not among them: heads of other sizes than those of the kernels stay possible.
LEFT_OUT = ("BACKWARD", "DROPOUT", "ALIBI", "SOFTCAP", "LOCAL")

#: The head dimensions that flash-attn has kernels of.
SIZES = (32, 64, 96, 128, 192, 256)

#: Those that are built: of the models that people run, and of small ones, as tests have.
HEAD_DIMS = (32, 64, 128)

SOURCE = Path("csrc/flash_attn")
SWITCHES = SOURCE / "src/static_switch.h"
FEW_SWITCHES = "few_kernels.h"
NO_BACKWARD = SOURCE / "no_backward.cpp"
LIBRARIES = "libraries"


def kernels(head_dims: Sequence[int]) -> list[str]:
    """The files of kernels for ``head_dims``, relative to the source tree."""
    return [
        str(SOURCE / f"src/flash_fwd_{split}hdim{size}_bf16{causal}_sm80.cu")
        for size in sorted(head_dims)
        for split in ("", "split_")
        for causal in ("", "_causal")
    ]


def heads_of(size: int) -> range:
    """The head dimensions that the kernel of ``size`` takes.

    Those of no other: partial sums are as wide as a head when it is rounded up to the next of
    `SIZES`, and a wider kernel writes past their end.
    """
    below = max((other for other in SIZES if other < size), default=0)
    return range(below + 1, size + 1)


def switches(head_dims: Sequence[int]) -> str:
    """A header that knows of ``head_dims`` and bfloat16 only, to be included after the others."""
    sizes = sorted(head_dims)
    taken = {size: f"((HEADDIM) >= {heads_of(size)[0]} && (HEADDIM) <= {size})" for size in sizes}
    names = ", ".join(f"{heads_of(size)[0]} to {size}" for size in sizes)
    lines = [
        "#define HEADDIM_SWITCH(HEADDIM, ...) [&] {",
        f'  TORCH_CHECK({" || ".join(taken.values())}, "built for heads of {names}");',
        *(
            f"  if {heads} {{ constexpr static int kHeadDim = {size}; return __VA_ARGS__(); }}"
            for size, heads in taken.items()
        ),
        "}()",
    ]
    return "\n".join(
        [
            "#pragma once",
            "#undef FP16_SWITCH",
            "#define FP16_SWITCH(COND, ...) [&] { \\",
            '  TORCH_CHECK(!(COND), "built for bfloat16 only"); \\',
            "  using elem_type = cutlass::bfloat16_t; return __VA_ARGS__(); }()",
            "#undef HEADDIM_SWITCH",
            " \\\n".join(lines),
            "",
        ]
    )


def no_backward(head_dims: Sequence[int]) -> str:
    """What the linker finds where the backward pass was."""
    instances = "\n".join(
        f"template void run_mha_bwd_<cutlass::bfloat16_t, {size}, {causal}>"
        "(Flash_bwd_params &, cudaStream_t);"
        for size in sorted(head_dims)
        for causal in ("false", "true")
    )
    head = """\
        #include <torch/python.h>
        #include <ATen/cuda/CUDAContext.h>
        #include <ATen/cuda/CUDAGeneratorImpl.h>
        #include <cutlass/numeric_types.h>
        #include "namespace_config.h"
        #include "flash.h"
        namespace FLASH_NAMESPACE {
        template <typename T, int Headdim, bool Is_causal>
        void run_mha_bwd_(Flash_bwd_params &, cudaStream_t) {
            TORCH_CHECK(false, "built without the backward pass");
        }
        """
    return dedent(head) + instances + "\n}  // namespace\n"


def toolkit_packages() -> list[Path]:
    """Where the packages that PyTorch needs have CUDA's headers and libraries."""
    spec = find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    return [folder for root in roots for folder in root.glob("cu[0-9]*") if folder.is_dir()]


def toolkit() -> Path:
    """The folder of the CUDA toolkit: ``$CUDA_HOME``, or else its usual place.

    Raises:
        FileNotFoundError: there is no nvcc.
    """
    named = os.environ.get("CUDA_HOME")
    on_path = shutil.which("nvcc")
    for home in (
        *([Path(named)] if named else []),
        Path("/usr/local/cuda"),
        *([Path(on_path).resolve().parents[1]] if on_path else []),
    ):
        if (home / "bin/nvcc").is_file():
            return home
    raise FileNotFoundError("there is no nvcc: set CUDA_HOME to the folder of the CUDA toolkit")


def setup_script(head_dims: Sequence[int], architectures: Sequence[str]) -> str:
    """The text of the ``setup.py`` that builds the wheel; ``architectures`` such as ``90``."""
    sources = [str(SOURCE / "flash_api.cpp"), str(NO_BACKWARD), *kernels(head_dims)]
    defined = [f"-DFLASHATTENTION_DISABLE_{name}" for name in LEFT_OUT]
    device = [
        "-O3",
        "-std=c++17",
        *(f"-U__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS")),
        *(f"-U__CUDA_NO_{name}__" for name in ("HALF2_OPERATORS", "BFLOAT16_CONVERSIONS")),
        "--expt-relaxed-constexpr",
        "--expt-extended-lambda",
        "--use_fast_math",
        *(f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures),
        *defined,
    ]
    includes = [str(SOURCE), str(SOURCE / "src"), "csrc/cutlass/include"]
    headers = [str(folder / "include") for folder in toolkit_packages()]
    return dedent(f"""\
        import os
        import re
        from pathlib import Path
        from setuptools import setup
        from torch.utils.cpp_extension import BuildExtension, CUDAExtension

        here = Path(__file__).resolve().parent
        text = (here / "flash_attn/__init__.py").read_text()
        version = re.search(r'__version__ = "([^"]+)"', text).group(1)
        setup(
            name="flash_attn",
            version=version + "+bf16.forward.{".".join(map(str, sorted(head_dims)))}",
            packages=["flash_attn", "flash_attn.layers", "flash_attn.ops", "flash_attn.ops.triton"],
            ext_modules=[
                CUDAExtension(
                    "flash_attn_2_cuda",
                    sources={sources!r},
                    include_dirs=[
                        *(str(here / folder) for folder in {includes!r}),
                        os.path.join(os.environ["CUDA_HOME"], "include"),
                        *{headers!r},
                    ],
                    library_dirs=[str(here / {LIBRARIES!r})],
                    extra_compile_args={{
                        "cxx": ["-O3", "-std=c++17", *{defined!r}],
                        "nvcc": {device!r},
                    }},
                )
            ],
            cmdclass={{"build_ext": BuildExtension}},
            install_requires=["torch", "einops"],
        )
        """)


def transform(tree: Path, head_dims: Sequence[int], architectures: Sequence[str]) -> None:
    """Reduce the unpacked source below ``tree``.

    Raises:
        ValueError: the source is not what this script knows: 2.8.3 and its neighbours.
    """
    missing = [name for name in kernels(head_dims) if not (tree / name).is_file()]
    if missing or not (tree / "csrc/cutlass/include/cutlass/cutlass.h").is_file():
        raise ValueError(f"{tree} lacks {missing or 'csrc/cutlass'}: is it flash-attn 2.8.3?")
    text = (tree / SWITCHES).read_text()
    for macro in ("FP16_SWITCH", "HEADDIM_SWITCH", *(f"{name}_SWITCH" for name in LEFT_OUT[1:])):
        if f"#define {macro}" not in text:
            raise ValueError(f"{SWITCHES} of {tree} has no {macro}: is it flash-attn 2.8.3?")
    (tree / SWITCHES).write_text(f'{text.rstrip()}\n\n#include "{FEW_SWITCHES}"\n')
    (tree / SWITCHES).with_name(FEW_SWITCHES).write_text(switches(head_dims))
    (tree / NO_BACKWARD).write_text(no_backward(head_dims))
    (tree / "setup.py").write_text(setup_script(head_dims, architectures))
    (tree / "setup.cfg").unlink(missing_ok=True)
    (tree / LIBRARIES).mkdir(exist_ok=True)
    for library in (path for home in toolkit_packages() for path in home.glob("lib/libcudart.so*")):
        (tree / LIBRARIES / "libcudart.so").unlink(missing_ok=True)
        (tree / LIBRARIES / "libcudart.so").symlink_to(library)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the source distribution into ``folder``; returns the tree in it."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (tree,) = (path for path in folder.iterdir() if path.is_dir())
    return tree


def build(tree: Path, output: Path, jobs: int) -> Path:
    """Compile ``tree`` with ``jobs`` processes at once; returns the wheel, in ``output``.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    output.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "MAX_JOBS": str(jobs), "CUDA_HOME": str(toolkit())}
    # The setup script says what is built.
    environment.pop("TORCH_CUDA_ARCH_LIST", None)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(output.resolve())],
        cwd=tree,
        env=environment,
        check=True,
    )
    return max(output.glob("flash_attn-*.whl"), key=lambda path: path.stat().st_mtime)


def check(head_dims: Sequence[int] = HEAD_DIMS) -> list[str]:
    """Call the installed flash-attn as Megatron does, and compare it with PyTorch.

    Returns a line for each shape that was compared: with heads of the size of each kernel, and with
    narrower ones, which are padded to it. Needs a CUDA device.

    Raises:
        AssertionError: the results are further apart than rounding to bfloat16 explains.
    """
    lines = []
    for size in (narrower for kernel in head_dims for narrower in (kernel - 16, kernel)):
        for heads, groups in ((16, 16), (32, 8)):
            shape = f"head dimension {size}, {heads} heads, {groups} of keys and values"
            worst = _furthest(size, heads, groups)
            assert worst < 0.03, f"{shape}: off by {worst}"
            lines.append(f"{shape}: {worst:.4f}")
    return lines


def _furthest(size: int, heads: int, groups: int) -> float:
    """How far attention over KV blocks is from PyTorch's, at most."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    flash_attn: Any = import_module("flash_attn")
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator)

    block, lengths = 256, [1, 255, 256, 700]
    blocks_each = -(-max(lengths) // block)
    table = torch.randperm(len(lengths) * blocks_each, device="cuda", dtype=torch.int32)
    table = table.view(len(lengths), blocks_each)
    keys, values = (draw(table.numel(), block, groups, size) for _ in range(2))
    new = [min(length, 5) for length in lengths]
    starts = torch.tensor([0, *torch.tensor(new).cumsum(0)], dtype=torch.int32).cuda()
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32).cuda()
    queries = draw(sum(new), heads, size)
    prefilled = flash_attn.flash_attn_varlen_func(
        queries,
        keys,
        values,
        starts,
        ends,
        max(new),
        max(lengths),
        causal=True,
        block_table=table,
    )
    last = queries[starts[1:].long() - 1]
    decoded = flash_attn.flash_attn_with_kvcache(
        last.unsqueeze(1),
        keys,
        values,
        cache_seqlens=torch.tensor(lengths, dtype=torch.int32).cuda(),
        causal=True,
        block_table=table,
    )
    worst = 0.0
    for row, length in enumerate(lengths):
        mine = slice(int(starts[row]), int(starts[row + 1]))
        k, v = (
            cache[table[row].long()]
            .reshape(1, -1, groups, size)[:, :length]
            .transpose(1, 2)
            .float()
            for cache in (keys, values)
        )
        q = queries[mine].unsqueeze(0).transpose(1, 2).float()
        seen = torch.ones(new[row], length, dtype=torch.bool, device="cuda")
        expected = scaled_dot_product_attention(
            q, k, v, attn_mask=seen.tril(length - new[row]), enable_gqa=True
        ).transpose(1, 2)[0]
        for got, wanted in ((prefilled[mine], expected), (decoded[row], expected[-1:])):
            worst = max(worst, float((got.float() - wanted).abs().max()))
    return worst


def _check_wheel(wheel: Path, head_dims: Sequence[int]) -> None:
    """Check ``wheel`` in a process that finds it before all else."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder)
        subprocess.run(
            [sys.executable, __file__, "--only-check", "--head-dims", *map(str, head_dims)],
            env={**os.environ, "PYTHONPATH": folder},
            check=True,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sdist", nargs="?", type=Path, help="flash_attn-2.8.3.tar.gz")
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="write the wheel there"
    )
    parser.add_argument("--head-dims", type=int, nargs="+", default=HEAD_DIMS, choices=SIZES)
    parser.add_argument(
        "--architectures",
        nargs="+",
        default=["90"],
        help="compute capabilities of the GPUs, without dots; default: 90, for H100",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="compilers at the same time"
    )
    parser.add_argument("--work", type=Path, help="unpack there, and keep what is compiled")
    parser.add_argument(
        "--only-check", action="store_true", help="check the flash-attn that is installed"
    )
    options = parser.parse_args(arguments)
    if options.only_check:
        print("flash-attn agrees with PyTorch; greatest difference:")
        print("\n".join(check(options.head_dims)))
        return 0
    if options.sdist is None:
        parser.error(
            "expected a source distribution, such as flash_attn-2.8.3.tar.gz, or --only-check"
        )
    import torch

    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        tree = unpack(options.sdist, work)
        transform(tree, options.head_dims, options.architectures)
        wheel = build(tree, options.output, options.jobs)
    print(wheel)
    if torch.cuda.is_available():
        _check_wheel(wheel, options.head_dims)
    else:
        print("not checked: there is no CUDA device")
    return 0


if __name__ == "__main__":
    sys.exit(main())
