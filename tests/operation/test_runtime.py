"""The order of imports: each test has a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from packaging.version import Version

from megatron_patch import testing
from megatron_patch.testing import runtime

from .. import starter
from ..conftest import RELEASE

DECODE = """
request = testing.Request(prompt=(1, 2, 3), num_tokens=4)
engine = testing.build_engine(testing.EngineSpec())
print(testing.decode(engine, [request]).tokens)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return starter.run(f"from megatron_patch import testing\n{code}")


def test_importing_the_package_is_cheap() -> None:
    code = "import sys; assert not {'torch', 'megatron', 'megatron.core'} & set(sys.modules)"
    code = f"from megatron_patch import testing\n{code}"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_too_late() -> None:
    code = "import megatron.core.transformer.attention as module\n"
    # As on a CPU, or on a machine with a CUDA device and without flash-attn.
    code += "module.flash_attn_varlen_func = None; module.HAVE_FA3 = module.HAVE_FA4 = False\n"
    result = run(f"{code}testing.start()")
    assert result.returncode == 1
    message = "RuntimeError: megatron.core.transformer.attention was imported before"
    assert message in result.stderr
    assert "Call start() before anything imports Megatron" in result.stderr


def test_stop_and_start_again() -> None:
    result = run(f"""
import sys
testing.stop()
device = testing.start()
assert testing.start() == device
{DECODE}
from torch import distributed
testing.stop()
testing.stop()
assert not distributed.is_initialized()
from megatron.core import parallel_state
assert not parallel_state.model_parallel_is_initialized()
if device.type == "cpu":
    assert "flash_attn" not in sys.modules
testing.start()
{DECODE}
""")
    assert result.returncode == 0, result.stderr
    assert not any(name in result.stderr for name in ("Exception ignored", "never awaited"))
    first, second = result.stdout.splitlines()[-2:]
    assert first == second


@pytest.mark.skipif(
    RELEASE < Version("0.16"),
    reason="leaves captured CUDA graphs to the engine",
)
def test_stop_lets_go_of_cuda_graphs() -> None:
    result = run("""
import torch
testing.start()
testing.context_class()
from megatron.core.transformer import cuda_graphs
runner = cuda_graphs._CudaGraphRunner.__new__(cuda_graphs._CudaGraphRunner)
torch.nn.Module.__init__(runner)
runner.fwd_graph = "a graph"
cuda_graphs._CudagraphGlobalRecord.cudagraph_inference_record.append((runner,))
testing.stop()
assert runner.fwd_graph is None
assert cuda_graphs._CudagraphGlobalRecord.cudagraph_inference_record == []
""")
    assert result.returncode == 0, result.stderr


def test_a_process_group_of_others_is_used_and_left() -> None:
    result = run("""
from torch import distributed
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
group = distributed.group.WORLD
testing.start()
testing.stop()
assert distributed.group.WORLD is group
distributed.destroy_process_group()
""")
    assert result.returncode == 0, result.stderr


def test_nothing_works_without_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_runtime", None)
    spec = testing.EngineSpec()
    for function in (testing.build_model, testing.build_context, testing.build_engine):
        with pytest.raises(RuntimeError, match=r"call megatron_patch\.testing\.start\(\) first"):
            function(spec)
    with pytest.raises(RuntimeError, match=r"start\(\) first"):
        testing.context_class()
