"""One model on two ranks, started with torchrun: patched alike, and the same tokens as on one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import megatron_patch
from megatron_patch import testing
from megatron_patch.backports import SERIES

from .. import two_ranks
from ..backports.checks import REQUESTS

RANK = """
import faulthandler, json, os, sys

# Collectives that do not meet wait for ever: say where, before the test gives up.
faulthandler.dump_traceback_later(240, exit=True)

import torch
from torch import distributed
import megatron_patch
from megatron_patch import testing


backend, folder, graphs, requests = json.loads(sys.argv[1])
rank = int(os.environ["RANK"])
if backend == "nccl":
    torch.cuda.set_device(rank)
distributed.init_process_group(backend)
testing.start(tensor_model_parallel_size=2)
engine = testing.build_engine(testing.EngineSpec(max_requests=16, num_cuda_graphs=graphs))
decoded = testing.decode(engine, [testing.Request(*request) for request in requests])
megatron_patch.verify_ranks()
states = {entry.id: str(entry.state) for entry in megatron_patch.status()}
heads = engine.context.memory_buffer.shape[-2]
with open(os.path.join(folder, f"{rank}.json"), "w") as file:
    json.dump({"tokens": decoded.tokens, "states": states, "heads": heads}, file)
testing.stop()
distributed.destroy_process_group()
"""


def run_ranks(folder: Path, backend: str, graphs: int | None) -> list[dict[str, object]]:
    """What the two ranks wrote."""
    arguments = [backend, str(folder), graphs, two_ranks.as_arguments(REQUESTS)]
    two_ranks.run(folder, RANK, arguments, cpu=backend == "gloo")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def states_of_engine(states: dict[str, str]) -> dict[str, str]:
    """The states of the patches whose targets each process with an engine imports."""
    return {patch.id: states[patch.id] for patch in SERIES if not patch.may_stay_pending}


RUNS = [
    pytest.param("gloo", 2, id="gloo"),
    pytest.param("nccl", None, marks=pytest.mark.gpu, id="nccl-eager"),
    pytest.param("nccl", 2, marks=pytest.mark.gpu, id="nccl-graphs"),
]


@pytest.mark.parametrize(("backend", "graphs"), RUNS)
def test_two_ranks_are_patched_alike_and_decode_what_one_decodes(device, tmp_path, backend, graphs):
    if backend == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("needs 2 CUDA devices")
    spec = testing.EngineSpec(max_requests=16)
    ranks = run_ranks(tmp_path, backend, graphs)
    engine = testing.build_engine(spec)
    alone = testing.decode(engine, REQUESTS, capture_logits=False)
    for rank in ranks:
        assert rank["tokens"] == [list(tokens) for tokens in alone.tokens]
        assert states_of_engine(rank["states"]) == states_of_engine(
            {entry.id: str(entry.state) for entry in megatron_patch.status()}
        )
        assert rank["heads"] == spec.num_attention_heads // 2
