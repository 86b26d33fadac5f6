"""One model on two ranks, started with torchrun: patched alike, with what it decodes unpatched."""

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
from .kernels import rounds_to_bfloat16, spec_of

RANK = """
import faulthandler, hashlib, json, os, sys

# Collectives that do not meet wait for ever: say where, before the test gives up.
faulthandler.dump_traceback_later(240, exit=True)

import torch
from torch import distributed
import megatron_patch
from megatron_patch import testing


backend, folder, fields, requests = json.loads(sys.argv[1])
requests = [testing.Request(*request) for request in requests]
rank = int(os.environ["RANK"])
if backend == "nccl":
    torch.cuda.set_device(rank)
distributed.init_process_group(backend)
testing.start(tensor_model_parallel_size=2)


def decode(engine):
    digests, context = [], engine.context

    def note(module, arguments, logits):
        rows = context.total_request_count - context.paused_request_count
        real = logits[:, :rows].contiguous().view(torch.uint8).cpu().numpy()
        digests.append(hashlib.sha256(real.data).hexdigest())

    model = engine.controller.inference_wrapped_model.model
    handle = model.register_forward_hook(note)
    tokens = testing.decode(engine, requests, capture_logits=False).tokens
    handle.remove()
    return {"tokens": tokens, "logits": digests}


spec = testing.EngineSpec(**fields)
engine = testing.build_engine(spec)
patched = decode(engine)
megatron_patch.verify_ranks()
states = {entry.id: str(entry.state) for entry in megatron_patch.status()}
heads = engine.context.memory_buffer.shape[-2]
megatron_patch.uninstall()
released = decode(testing.build_engine(spec))
with open(os.path.join(folder, f"{rank}.json"), "w") as file:
    json.dump({"patched": patched, "released": released, "states": states, "heads": heads}, file)
testing.stop()
distributed.destroy_process_group()
"""


def run_ranks(folder: Path, backend: str, spec: testing.EngineSpec) -> list[dict[str, object]]:
    """What the two ranks wrote."""
    plain = testing.EngineSpec()
    fields = {n: value for n, value in vars(spec).items() if value != getattr(plain, n)}
    arguments = [backend, str(folder), fields, two_ranks.as_arguments(REQUESTS)]
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
def test_two_ranks_are_patched_alike_and_decode_the_same(device, tmp_path, backend, graphs):
    if backend == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("needs 2 CUDA devices")
    rounded = backend == "nccl" and rounds_to_bfloat16()
    spec = (spec_of if rounded else testing.EngineSpec)(max_requests=16, num_cuda_graphs=graphs)
    ranks = run_ranks(tmp_path, backend, spec)
    alone = testing.reference_decode(testing.build_model(spec), REQUESTS)
    for rank in ranks:
        assert rank["patched"] == rank["released"]
        if not rounded:  # two halves of a sum in bfloat16 are not the sum
            assert rank["patched"]["tokens"] == [list(tokens) for tokens in alone]
        assert states_of_engine(rank["states"]) == states_of_engine(
            {entry.id: str(entry.state) for entry in megatron_patch.status()}
        )
        assert rank["heads"] == spec.num_attention_heads // 2
